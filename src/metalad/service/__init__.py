"""The HTTP service: models behind `POST /v1/predict`, with limits, metrics and a page.

The event loop reads requests and sends answers; worker threads decode, infer and encode. Nothing here imports torch:
an exported model is served without it. It may import `metalad.storage` and what is below it.
"""
