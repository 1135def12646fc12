"""The configuration menu: kconfiglib's, with values checked, loaded and saved by the same code as everywhere else."""

import argparse
import contextlib
import functools
import locale
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import preflight
from lib.base.errors import UsageError, UserError, run_program
from lib.config.command_line import config_path
from lib.config.config_file import ConfigError, presets, title
from lib.config.kconf import Schema
from lib.config.option import Option

try:
    import curses

    import menuconfig  # that of kconfiglib: sys.path[0], set above, prevents an import of this file
except ImportError:
    curses = menuconfig = None  # Python on Windows has no curses

_KEYS = "123456789abcdefg"  # one per preset; more would not fit into a dialog on a terminal of 24 lines
_FAILURES = 100  # failed reads in a row that mean a closed terminal; a signal makes only a single read fail


def main() -> int:
    """Show the menu with the current configuration, and save what the user chooses."""
    argparse.ArgumentParser(
        description=__doc__,
        epilog="It edits the file .config in the current folder, or the one that KCONFIG_CONFIG names.",
    ).parse_args()
    menu = Menu(config_path(os.environ))
    _prepare_terminal()
    menu.show()
    return 0


class Menu:
    """kconfiglib's menuconfig with its loading, saving and checking replaced by Schema's and Option's.

    The replaced functions are private to kconfiglib. So pyproject.toml pins its version.
    """

    def __init__(self, path: Path):
        """Read the configuration at `path`; raises ConfigError with all its problems."""
        self.path, self.schema, self.saved = path, Schema(), False
        if path.exists():
            try:
                self.schema.load(path)
            except ConfigError as error:
                advice = "correct these lines, or drop them with make olddefconfig"
                raise ConfigError([*error.problems, advice]) from None

    def show(self) -> None:
        """Run the menu until the user leaves it."""
        os.environ["KCONFIG_CONFIG"] = str(self.path)
        menuconfig._check_valid = self._check_valid
        menuconfig._range_info = self._range_info
        menuconfig._node_str = functools.partial(_without_new, menuconfig._node_str)
        menuconfig._load_dialog = functools.partial(self._load_dialog, menuconfig._load_dialog)
        menuconfig._sorted_sc_nodes = functools.partial(_settable_first, menuconfig._sorted_sc_nodes)
        menuconfig._jump_to = functools.partial(_jump_to, menuconfig._jump_to)
        menuconfig._load_config = menuconfig._needs_save = self._needs_save
        menuconfig._getch_compat = functools.partial(_key, menuconfig._getch_compat)
        menuconfig._try_load = self._try_load
        menuconfig._try_save = self._try_save
        menuconfig.menuconfig(self.schema.kconf)
        if self.saved:
            print(f"Differs from the defaults: {self.schema.summary()}")
            for warning in self._warnings():
                print(f"warning: {warning}")

    def _needs_save(self) -> bool:
        """Whether saving would change the file even before the user changes an option."""
        return not self.path.exists() or bool(self.schema.warnings)

    def _option(self, symbol) -> Option:
        return self.schema.options.get(symbol.name) or self.schema.parts[symbol.name][0]

    def _check_valid(self, symbol, text: str) -> bool:
        if complaint := self._option(symbol).complaint(text):
            _error(f"{symbol.name} {complaint}")
        return not complaint

    def _range_info(self, symbol) -> str | None:
        bounds = self._option(symbol).range
        return f"Range: {bounds[0]} to {bounds[1]}" if bounds else None

    def _try_load(self, filename: str) -> bool:
        try:
            Schema().load(Path(filename))
        except ConfigError as error:
            _error(str(error))
            return False
        self.schema.clear()
        self.schema.load(Path(filename))
        return True

    def _try_save(self, save_function, filename: str, description: str) -> str | None:
        minimal = save_function == self.schema.kconf.write_min_config
        try:
            self.schema.write(Path(filename), minimal=minimal, keep_old=not minimal)
        except UserError as error:
            _error(str(error))
            return None
        self.saved = self.saved or not minimal
        return f"{description[0].upper()}{description[1:]} saved to {filename}"

    def _warnings(self) -> list[str]:
        try:
            return preflight.new(self.schema)
        except UsageError as error:
            return list(error.args)

    def _load_dialog(self, ask_for_file: Callable[[], None]) -> None:
        """Let the user load a preset or a file, and go back to the top of the menu."""
        keys = dict(zip(_KEYS, presets(), strict=False))  # presets beyond the last key can be loaded as files
        width = max(map(len, keys.values()), default=0)
        lines = ["o  a file, by its name"]
        for key, name in keys.items():
            about = textwrap.shorten(title(presets()[name]), 66 - width, placeholder=" ...")
            lines.append(f"{key}  {name:{width}}  {about}")
        if menuconfig._conf_changed:
            lines += ["", "Loading a preset discards your unsaved changes."]
        key = menuconfig._key_dialog("Load", "\n".join(lines), f"o{''.join(keys)}")
        while key and menuconfig._cur_menu is not self.schema.kconf.top_node:
            menuconfig._leave_menu()
        if key == "o":
            ask_for_file()
        elif key and self._try_load(str(presets()[keys[key]])):
            menuconfig._conf_changed = True  # the preset is not yet saved to the configuration file
            menuconfig._update_menu()
            menuconfig._msg("Loaded", f"preset {keys[key]}; [S] saves it to {menuconfig._conf_filename}")


def _settable_first(sorted_nodes: Callable[[], list]) -> list:
    """The symbols and choices that a search can find; those that can be set now come first."""
    return sorted((node for node in sorted_nodes() if node.prompt), key=lambda node: not menuconfig._visible(node))


def _jump_to(jump: Callable, node) -> None:
    """Go to an option that a search found; if it cannot be set now, show what it needs."""
    if menuconfig._visible(node) and (not node.is_menuconfig or menuconfig._shown_nodes(node)):
        jump(node)
    else:
        menuconfig._info_dialog(node, False)


def _without_new(node_str: Callable, node) -> str:
    """A menu's line without "(NEW)": options with their default stay unassigned here, so all of them would have it."""
    return node_str(node).replace(" (NEW)", "")


def _key(getch: Callable, window) -> str | int:
    """The next key; ends the program when the terminal is gone.

    Every screen waits for its keys here. If SIGHUP is ignored, as under nohup, a closed terminal does not end the
    program. Each read of the keyboard then fails at once.
    """
    for _ in range(_FAILURES):
        if (key := getch(window)) != -1:
            return key
    with contextlib.suppress(curses.error):
        curses.endwin()
    os._exit(128 + signal.SIGHUP)  # as if SIGHUP had ended the program; there is no terminal to print a reason to


def _error(text: str) -> None:
    menuconfig._error("\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, 70)))


def _prepare_terminal() -> None:
    """Prepare curses; raises UserError, with what to do, if it cannot draw in this terminal."""
    if menuconfig is None:
        raise UserError(
            "the menu needs Python's curses module; on Windows use WSL, or edit .config and run make checkconfig"
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the menu needs a terminal; without one, use make defconfig or edit .config")
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:  # the environment names a locale that is not installed
        os.environ["LC_ALL"] = "C.UTF-8"
    try:
        curses.setupterm()
    except curses.error as error:
        raise UserError(
            f"TERM={os.environ.get('TERM', '')}: the menu cannot be drawn: {error}; try TERM=xterm"
        ) from None


if __name__ == "__main__":
    run_program(main)
