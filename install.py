"""Run by the WebUI at every start, in a process of its own. Everything needed is there as a rule: then it does nothing.

torch, and what the WebUI pins itself, are never touched. --skip-install is honoured by `launch.run_pip`.
"""

from pathlib import Path

from lib_accel.tools.requirements import missing, read_lists

# Only the small ones that an unusual WebUI may lack; the rest comes with every WebUI.
OURS = ("safetensors", "psutil", "filelock")


def main() -> None:
    wanted = [
        entry
        for entry in read_lists(Path(__file__).with_name("pyproject.toml"))["run"]
        if entry.name in OURS
    ]
    for entry in missing(wanted):
        import launch  # the WebUI's

        # Present but older than we like: the WebUI chose that, and it works well enough to keep.
        if not launch.is_installed(entry.name):
            launch.run_pip(
                f'install "{entry.text}"', f"{entry.text} for the Acceleration extension"
            )


if __name__ == "__main__":
    main()
