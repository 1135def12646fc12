"""Makes copies of the files in which the Linux kernel shows GPUs of AMD and Intel, as its documentation has them."""

GIB = 2**30


def amd(sys, number, unique, used, total=64 * GIB, gpu_id=12345, sensors=("power1_average", "temp2_input")):
    """The files of GPU `number`, whose node of KFD comes after that of a processor."""
    put(sys / "kfd/kfd/topology/nodes/0", gpu_id="0\n", properties="cpu_cores_count 96\nsimd_count 0\n")
    properties = f"cpu_cores_count 0\nsimd_count 1216\ndrm_render_minor {128 + number}\nunique_id {unique}\n"
    put(sys / f"kfd/kfd/topology/nodes/{number + 1}", gpu_id=f"{gpu_id}\n", properties=properties)
    device = sys / f"drm/renderD{128 + number}/device"
    memory = {"mem_info_vram_used": f"{used}\n", "mem_info_vram_total": f"{total}\n"}
    put(device, gpu_busy_percent="97\n", **(memory if total else {}))
    values = {"power1_average": "412500000\n", "power1_input": "398000000\n", "temp1_input": "51000\n"}
    values |= {"temp2_input": "68000\n"}
    put(device / "hwmon/hwmon4", name="amdgpu\n", **{name: values[name] for name in sensors})
    return device


def intel(sys, number, driver, **sensors):
    """The files of card `number`."""
    device = sys / f"drm/renderD{128 + number}/device"
    put(device / "hwmon/hwmon2", name=f"{driver}_gt0\n", energy1_input="1\n")
    put(device / "hwmon/hwmon3", name=f"{driver}\n", **sensors)
    return device


def put(folder, **files):
    """Write files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
