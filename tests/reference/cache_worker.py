"""What `test_disk_store.py` runs: loads the images of a folder, and is killed at one of them on request."""

import ctypes
import json
import os
import signal
import sys

import ssdd_hub.data.bank
from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.data.pixel_files import PixelFile
from ssdd_hub.errors import InputError


def obey_modes():
    """Gives up what lets the superuser write where modes forbid it."""
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def main(result, settings, dies_at, modes):
    decode, append, decoded = ssdd_hub.data.bank.decode_image, PixelFile.append, []

    def counted(*arguments):
        decoded.append(1)
        return decode(*arguments)

    def deadly(file, row, pixels):
        if row == int(dies_at):
            with file.path.open("ab") as torn:
                torn.write(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        append(file, row, pixels)

    ssdd_hub.data.bank.decode_image, PixelFile.append = counted, deadly
    if modes == "obeyed":
        obey_modes()
    try:
        images, _ = load_images(DataSettings(**json.loads(settings)), progress=False)
        found = [images.fingerprint, len(decoded)]
    except InputError as error:
        found = [str(error), len(decoded)]
    with open(result, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
