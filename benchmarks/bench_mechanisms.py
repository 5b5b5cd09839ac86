"""The training step of every mechanism on the same encoder, beside MoCo's.

On a CPU a narrow ResNet-18 at 32 pixels in float32, eager; on a GPU a ResNet-50 at 224 in bf16,
compiled. What they cost differs by what they compute: a symmetric loss, SimCLR and MoCo v3 pass
both views through both encoders or with gradients.
"""

from functools import partial

from benchmarks.harness import (
    CPU_PLAN,
    GPU_PLAN,
    Plan,
    Work,
    again,
    cuda_timer,
    host_timer,
    measure_blocks,
    summarize,
)
from benchmarks.limits import roof
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from benchmarks.step_subject import LEARNING_RATE, built, noise_batch, training_step
from fastmoco.device import resolve_device
from fastmoco.moco.settings import Mechanism, MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.precision import AUTOCAST_DTYPES
from fastmoco.pipelines.policies import POLICIES

MOCO = "moco"
NUM_SAMPLES = 50_000  # of the memory bank


def bench_mechanisms(settings: Settings, report: Report) -> None:
    """Images per second of each."""
    device = resolve_device("auto")
    on_cuda = device.type == "cuda"
    model, count, view_size = ModelConfig(encoder="resnet50"), 128, 224
    if not on_cuda:
        model = ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=16)
        count, view_size = 64, 32
    precision = Precision.bf16 if on_cuda else Precision.float32
    hidden_dim = 4096 if on_cuda else 512
    batch = noise_batch(count, view_size, device)
    mechanisms = {
        MOCO: MocoConfig(queue_size=4096),
        "moco, symmetric": MocoConfig(queue_size=4096, symmetric=True),
        "end_to_end (SimCLR)": MocoConfig(mechanism=Mechanism.end_to_end),
        "memory_bank": MocoConfig(mechanism=Mechanism.memory_bank, queue_size=4096),
        "moco_v3": MocoConfig(mechanism=Mechanism.moco_v3, dim=256, hidden_dim=hidden_dim),
    }
    works: dict[str, Work] = {}
    for name, moco in mechanisms.items():
        step = training_step(
            model,
            moco,
            policy=POLICIES["moco_v2" if on_cuda else "cifar"],
            device=device,
            precision=precision,
            compiled=on_cuda,
            num_samples=NUM_SAMPLES,
        )
        works[name] = partial(step, batch, LEARNING_RATE)
    plan = GPU_PLAN if on_cuda else Plan(CPU_PLAN.steps, settings.pick(3, 10))
    seconds = measure_blocks(works, MOCO, plan, cuda_timer if on_cuda else host_timer())
    report.subject = (
        f"{model.encoder} of width {model.width} at {view_size}, batch {count}, "
        f"{precision.value}, {'compiled' if on_cuda else 'eager'}, views included"
    )
    dtype = AUTOCAST_DTYPES[precision]
    for name in (*works, again(MOCO)):
        moco = mechanisms.get(name, mechanisms[MOCO])
        subject = built(model, moco, device, num_samples=NUM_SAMPLES)
        limit, rate = roof(subject, view_size, count, dtype)
        value = summarize([count / each for each in seconds[name]])
        report.rows.append(
            Row(
                what=name,
                unit="images/s",
                value=value,
                ratio=beside(seconds, name, MOCO if name != MOCO else "", MOCO),
                limit=limit,
                share_of_limit=value.median / rate,
                note="A/A: the noise floor" if name == again(MOCO) else "",
            )
        )
