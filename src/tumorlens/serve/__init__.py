"""The service: FastAPI on uvicorn over an exported classifier, without torch. Needs the extra `serve`."""
