"""The baseline of `load.py`: a minimal service with torch and FastAPI, one image per request.

WEIGHTS=best_brain_tumor_resnet18_finetuned.pth uvicorn plain_service:app
"""

import io
import os
from typing import Any

import torch
from fastapi import FastAPI, Request
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
app = FastAPI()
prepare = transforms.Compose(
    [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
)
model = resnet18(num_classes=len(CLASSES)).eval()
if weights := os.environ.get("WEIGHTS"):
    model.load_state_dict(torch.load(weights, weights_only=True))


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    image = Image.open(io.BytesIO(await request.body())).convert("RGB")
    with torch.inference_mode():
        probabilities = torch.softmax(model(prepare(image)[None]), 1)[0]
    return {"class": CLASSES[int(probabilities.argmax())], "probabilities": probabilities.tolist()}
