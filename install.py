"""Run by the WebUI at each start, in a process of its own: install small packages that it lacks.

torch and the packages that the WebUI pins itself are never touched.
"""

import importlib.util

PACKAGES = ("safetensors", "psutil", "filelock")


def main() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        import launch  # the WebUI's module; its run_pip honours --skip-install

        launch.run_pip(f"install {' '.join(missing)}", "packages for the Acceleration extension")


if __name__ == "__main__":
    main()
