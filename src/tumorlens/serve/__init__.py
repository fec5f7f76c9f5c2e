"""The service: FastAPI on uvicorn over the exported classifier, no torch. Needs the extra `serve`."""
