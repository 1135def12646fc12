"""The menu, driven through a pseudo-terminal as a user would."""

import fcntl
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from lib.config.config_file import presets
from lib.config.kconf import ROOT, Schema

DOWN, ENTER, ESCAPE, ERASE = b"j", b"\n", b"\x1b", b"\x7f"
HANG_UP = None  # in place of a key
QUIET = 0.15  # seconds without output after which the menu waits for a key
SECONDS = 5  # of processor time, for a program that takes 0.2 to start


def drive(folder, keys, **env):
    """Run the menu in `folder` and send it one of `keys` whenever it is quiet; returns exit status and what it drew.

    After HANG_UP its terminal is gone.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ.update({"TERM": "xterm", "LC_ALL": "C.UTF-8", **env})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup, so that the program has to see for itself
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # ends one that spins
        os.execv(sys.executable, [sys.executable, str(ROOT / "scripts/menuconfig.py")])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    drawn, keys, deadline = b"", list(keys), time.monotonic() + 60
    while time.monotonic() < deadline:
        # the first picture takes until Python has started
        if select.select([terminal], [], [], QUIET if drawn else 20)[0]:
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # the program has closed its end
                break
            drawn += chunk
        elif keys and keys[0] is HANG_UP:
            break
        elif keys:
            os.write(terminal, keys.pop(0))
    else:
        os.kill(process, 9)
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    text = re.sub(r"\x1b\[(\d*)C", lambda match: " " * int(match[1] or 1), drawn.decode(errors="replace"))
    return status, " ".join(re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][0AB]|[=>78M])", " ", text).split())


def saved(folder):
    schema = Schema()
    schema.load(folder / ".config")
    return schema


def test_an_optimizer_is_chosen_and_a_bad_float_is_refused(folder):
    status, drawn = drive(
        folder,
        [
            *[DOWN] * 3, ENTER,  # the menu Optimizer
            ENTER, b"g", b" ",  # its choice; the first entry is sgd
            DOWN, ENTER, ERASE * 3 + b"banana", ENTER,  # weight decay
            ESCAPE, ERASE * 6 + b"11", ENTER,
            ESCAPE, ERASE * 2 + b"2.5e-2", ENTER,
            b"q", b"y",
        ],
    )  # fmt: skip
    assert status == 0, drawn
    assert "WEIGHT_DECAY must be a number; got 'banana'" in drawn
    assert "WEIGHT_DECAY must lie between 0 and 10; got 11" in drawn
    assert "(NEW)" not in drawn
    assert "Configuration saved to .config" in drawn
    assert "Differs from the defaults: OPTIMIZER=sgd, WEIGHT_DECAY=2.5e-2" in drawn
    assert {option.name: option.text for option in saved(folder).differing()} == {
        "OPTIMIZER": "sgd",
        "WEIGHT_DECAY": "2.5e-2",
    }


def test_trackers_are_check_boxes_and_the_old_file_is_kept(folder):
    (folder / ".config").write_text("CONFIG_TRACKER_TRACKIO=y\nCONFIG_SEED=5\n")
    keys = [*[DOWN] * 6, ENTER, ENTER, b" ", DOWN, b" ", b"q", b"y"]
    status, drawn = drive(folder, keys)
    assert status == 0, drawn
    assert (saved(folder)["TRACKER"], saved(folder)["SEED"]) == (("wandb",), 5)
    assert (folder / ".config.old").read_text() == "CONFIG_TRACKER_TRACKIO=y\nCONFIG_SEED=5\n"


def test_defaults_follow_what_is_chosen_in_the_menu(folder):
    Schema().write(folder / ".config")  # it spells out every default
    status, drawn = drive(folder, [ENTER, ENTER, DOWN, b" ", b"q", b"y"])
    assert status == 0, drawn
    assert (saved(folder)["MODEL_NAME"], saved(folder)["N_LAYER"]) == ("gpt2-medium", 24)


def test_nothing_changed_is_nothing_saved(folder):
    Schema().write(folder / ".config")
    before = (folder / ".config").stat().st_mtime_ns
    status, drawn = drive(folder, [b"q"])
    assert (status, (folder / ".config").stat().st_mtime_ns) == (0, before), drawn
    assert "Differs" not in drawn


SCREENS = {
    "the top menu": ([], "Optimizer --->"),
    "a submenu": ([ENTER], "Model size"),
    "symbol information": ([ENTER, b"?"], "Choice information"),
    "search": ([b"/", b"tracker"], "TRACKER_TRACKIO"),
    "information from search": ([b"/", b"seed", b"\x06"], "Symbol information"),
    "an input": ([*[DOWN] * 3, ENTER, DOWN, ENTER], "Range: 0 to 10"),
    "the presets": ([b"o"], "gpt2_tiny_adamwprune_50"),
    "the file to load": ([b"o", b"o", b"o"], "File to load"),
    "the question at the end": ([b"q"], "Save configuration?"),
}


@pytest.mark.parametrize(("keys", "screen"), SCREENS.values(), ids=SCREENS)
def test_it_ends_with_its_terminal(folder, keys, screen):
    status, drawn = drive(folder, [*keys, HANG_UP])
    assert screen in drawn
    assert status == 128 + signal.SIGHUP


def test_another_file_is_edited_and_a_file_with_problems_is_not_loaded(folder):
    (folder / "mine").write_text("CONFIG_SEED=5\n")
    (folder / "bad").write_text("CONFIG_SEED=x\n")
    (folder / "good").write_text("CONFIG_TOP_K=3\n")
    keys = [b"o", b"o", ERASE * 4 + b"bad", ENTER, ESCAPE, ERASE * 3 + b"good", ENTER, ENTER, b"s", ENTER, ENTER, b"q"]
    status, drawn = drive(folder, keys, KCONFIG_CONFIG="mine")
    assert status == 0, drawn
    assert "bad:1: SEED must be a whole number; got 'x'" in drawn
    assert "CONFIG_TOP_K=3\n" in (folder / "good").read_text()
    assert "CONFIG_SEED=1337\n" in (folder / "good").read_text()
    assert (folder / "mine").read_text() == "CONFIG_SEED=5\n"


def test_a_preset_is_loaded_and_saved_to_the_own_file(folder):
    Schema().write(folder / ".config")
    number = str(1 + list(presets()).index("gpt2_shakespeare")).encode()
    status, drawn = drive(folder, [ENTER, b"o", number, ENTER, b"s", ENTER, ENTER, b"q"])
    assert status == 0, drawn
    assert "gpt2_shakespeare A byte-level GPT-2" in drawn
    assert "preset gpt2_shakespeare; [S] saves it to .config" in drawn
    preset = Schema()
    preset.load(presets()["gpt2_shakespeare"])
    assert saved(folder).values() == preset.values()


def test_a_preset_does_not_take_the_place_of_changes_unasked(folder):
    Schema().write(folder / ".config")
    keys = [*[DOWN] * 7, ENTER, *[DOWN] * 6, ENTER, ERASE * 4 + b"5", ENTER, b"o", ESCAPE, b"q", b"y"]
    status, drawn = drive(folder, keys)
    assert "Loading a preset discards your unsaved changes." in drawn
    assert (status, saved(folder)["SEED"]) == (0, 5)


def test_a_search_lands_on_what_can_be_set(folder):
    Schema().write(folder / ".config")
    status, drawn = drive(folder, [b"/", b"tracker", ENTER, b" ", b"q", b"y"])
    assert status == 0, drawn
    assert "TRACKER(=" not in drawn  # it has no title
    assert saved(folder)["TRACKER"] == ("all",)


def test_a_search_for_what_cannot_be_set_says_what_it_needs(folder):
    keys = [b"/", b"spam_theta", ENTER, b"q", b"/", rb"^pruning\sschedule", ENTER, b"q", b"q", b"n"]
    status, drawn = drive(folder, keys)  # nothing in that menu can be set without a method
    assert status == 0, drawn
    assert "Direct dependencies (=n): SPAM_ENABLE_CLIP(=n)" in drawn
    assert "Menu information" in drawn


def test_a_configuration_whose_masks_are_chosen_seldom_is_warned_of(folder):
    (folder / ".config").write_text("CONFIG_PRUNING_METHOD_MAGNITUDE=y\nCONFIG_PRUNING_INTERVAL=900\n")
    drawn = drive(folder, [b"s", ENTER, ENTER, b"q"])[1]
    assert "warning: PRUNING_INTERVAL=900 chooses masks about 7 times in steps 2500 to 7500; a lower" in drawn


def test_a_configuration_with_problems_is_not_opened(folder):
    (folder / ".config").write_text("CONFIG_SEDE=5\nCONFIG_TOP_K=x\n")
    status, drawn = drive(folder, [])
    assert status == 2
    assert drawn == (
        "error: .config:1: unknown option SEDE; did you mean SEED? "
        "error: .config:2: TOP_K must be a whole number; got 'x' "
        "error: correct these lines, or drop them with make olddefconfig"
    )
    assert (folder / ".config").read_text() == "CONFIG_SEDE=5\nCONFIG_TOP_K=x\n"


def test_a_locale_that_the_machine_lacks_does_no_harm(folder):
    assert drive(folder, [b"q", b"n"], LC_ALL="xx_YY.UTF-8")[0] == 0


def test_a_terminal_that_cannot_draw_is_one_sentence(folder):
    status, drawn = drive(folder, [], TERM="nonsense")
    assert status == 1
    assert re.fullmatch(r"error: TERM=nonsense: the menu cannot be drawn: .*; try TERM=xterm", drawn)


def test_without_a_terminal_there_is_no_menu(program):
    done = program("scripts/menuconfig.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the menu needs a terminal; without one, use make defconfig or edit .config\n"


def test_without_curses_there_is_no_menu(folder):
    (folder / "curses.py").write_text("raise ImportError\n")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import runpy; runpy.run_path({str(ROOT / 'scripts/menuconfig.py')!r}, run_name='__main__')",
        ],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the menu needs Python's curses module; on Windows use WSL")


@pytest.mark.parametrize("option", [o for o in Schema().options.values() if o.kind == "choice"], ids=lambda o: o.name)
def test_a_choice_with_its_value_fits_into_80_columns(option):
    longest = max(len(symbol.nodes[0].prompt[0]) for symbol in option.members.values())
    assert len(f"    {option.prompt} ()  --->") + longest <= 80


def test_help_texts_fit_into_80_columns():
    wide = [o.name for o in Schema().options.values() if max(map(len, o.help.splitlines())) > 77]
    assert not wide


def test_impossible_pairs_of_optimizer_and_pruning_are_not_in_the_menu():
    def offered(**values):
        schema = Schema()
        schema.override([(name, text, "test") for name, text in values.items()])
        members = schema.options["PRUNING_METHOD"].members
        return {value for value, symbol in members.items() if symbol.visibility}

    everything = set(
        "none magnitude movement state gradient wanda random str grasp synflow sparsegpt given shrink".split()
    )
    assert offered(OPTIMIZER="adamw") == offered(OPTIMIZER="adamwprune") == everything
    assert offered(OPTIMIZER="sgd") == everything - {"state", "movement"}
    assert offered(OPTIMIZER="muon") == everything - {"state"}
    assert offered(OPTIMIZER="adam") == everything - {"movement", "str"}
