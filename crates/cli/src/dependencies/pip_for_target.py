"""Runs pip as if its Python were the target's.

pip chooses wheels by --platform and --python-version, but judges conditions such as
`python_version < "3.11"` and `platform_machine == "x86_64"` by the Python that it runs in.
Arguments: the target's version, its machine, and then pip's own.
"""

import sys

# The folder that this runs in is the user's, and not a place for modules.
sys.path[:] = [entry for entry in sys.path if entry]

import os
import platform
import runpy

version, machine = sys.argv[1:3]
del sys.argv[1:3]
target = {
    "implementation_name": "cpython",
    "implementation_version": version + ".0",
    "os_name": "posix",
    "platform_machine": machine,
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": version + ".0",
    "python_version": version,
    "sys_platform": "linux",
}
try:
    from pip._vendor.packaging import markers

    of_this_machine = markers.default_environment
except (ImportError, AttributeError):
    here = "%d.%d" % sys.version_info[:2]
    if (here, platform.machine(), os.name) != (version, machine, "posix"):
        sys.exit("ERROR: this pip judges conditions by Python %s alone" % here)
else:
    markers.default_environment = lambda: dict(of_this_machine(), **target)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
