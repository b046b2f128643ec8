"""A fine-tuned timm network teaches timm students: import its weights, cache its logits, train with AdamW.

python examples/timm_students.py --data dataset --weights finetuned.pth --model timm/vit_tiny_patch16_224 --teacher-px 224

--weights is what your training script saved, for the classes of the data in sorted order. Each step continues after an
interruption. The same as commands: udkd teacher import, then udkd train --teacher TEACHER.
"""

import argparse
from pathlib import Path

import udkd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--weights", required=True, help=".safetensors or .pth of the teacher")
    parser.add_argument("--model", required=True, help="the teacher's architecture, such as timm/vit_tiny_patch16_224")
    parser.add_argument("--teacher-px", type=int, required=True, help="side of the teacher's input")
    parser.add_argument("--students", nargs="+", default=["timm/mobilenetv3_small_100", "timm/resnet18"])
    parser.add_argument("--recipe", default="imagenet100-paper")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("timm-students"))
    args = parser.parse_args()

    size = f"teacher.size_px={args.teacher_px}"
    teacher, run = args.out / "teacher", args.out / "run"
    students = [
        f"{{architecture='{name}', optimizer='AdamW', lr=1e-3, weight_decay=0.05, decay_1d=false, warmup_epochs=0.5}}"
        for name in args.students
    ]
    settings = [size, f"train.epochs={args.epochs}", f"train.batch_size={args.batch_size}", f"students=[{', '.join(students)}]"]
    recipe = udkd.load_recipe(args.recipe, settings)
    if not (teacher / "teacher.json").exists():
        udkd.import_teacher(teacher, data=args.data, model=args.model, weights=args.weights, recipe=recipe)
    udkd.train(recipe, data=args.data, teacher=teacher, out=run, resume=(run / "config.json").exists(), progress=True)
    for student in udkd.evaluate(run, teacher=teacher)["students"]:
        print(f"{student['name']}: top-1 {student['top1']:.2f} %")


if __name__ == "__main__":
    main()
