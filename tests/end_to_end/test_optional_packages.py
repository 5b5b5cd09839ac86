"""FFCV and DALI do what the loaders need of them on this machine."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.limits import HANG_SECONDS
from tests.optional import require


def photograph(height: int, width: int) -> np.ndarray:
    """A smooth RGB image with noise, as photographs have; `(height, width, 3)` uint8."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + y / 23), np.cos(x / 29), np.sin(y / 11)]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return (128 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, subsampling: int) -> bytes:
    """`image` as JPEG of quality 90; `subsampling` 0 is 4:4:4, 2 is 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90, subsampling=subsampling)
    return buffer.getvalue()


FFCV_DECODES = """
import sys
import numpy as np
from ffcv.libffcv import imdecode

blob = np.fromfile(sys.argv[1], np.uint8)
decoded = np.zeros((48, 64, 3), np.uint8)
assert imdecode(blob, decoded, 48, 64, crop_height=48, crop_width=64) == 0
np.save(sys.argv[2], decoded)
"""


@pytest.mark.full
def test_ffcv_compiled_library_decodes_jpeg(tmp_path: Path) -> None:
    require("ffcv")
    blob = jpeg(photograph(48, 64), 0)
    (tmp_path / "image.jpg").write_bytes(blob)
    paths = [str(tmp_path / "image.jpg"), str(tmp_path / "decoded.npy")]
    subprocess.run([sys.executable, "-c", FFCV_DECODES, *paths], check=True, timeout=HANG_SECONDS)
    difference = np.abs(np.load(paths[1]).astype(int) - simplejpeg.decode_jpeg(blob))
    # FFCV asks for the fast inverse DCT; 3 levels at most were seen on this image.
    assert difference.max() <= 6


def test_dali_decodes_on_the_cpu_as_libjpeg_turbo_does() -> None:
    require("nvidia.dali")
    from nvidia.dali import fn, pipeline_def, types

    blob = jpeg(photograph(120, 160), 0)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decode():  # type: ignore[no-untyped-def]
        encoded = fn.external_source(
            source=lambda: [np.frombuffer(blob, np.uint8)], dtype=types.UINT8
        )
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    pipeline = decode()
    pipeline.build()
    (batch,) = pipeline.run()
    difference = np.abs(batch.at(0).astype(int) - simplejpeg.decode_jpeg(blob))
    # Two builds of libjpeg-turbo may round the inverse DCT and the color conversion differently.
    assert difference.max() <= 2
