"""Models brought into memory by a request, before anybody asks them something."""

import httpx
import openai

EXPRESSION = "admin/base + 0.41*admin/one"
LOAD = "/api/variants/load"


def test_a_loaded_model_answers_merged_and_is_told_to_be_there(http: httpx.Client, client: openai.OpenAI) -> None:
    found = http.post(LOAD, json={"model": EXPRESSION})
    assert found.status_code == 200, found.text
    loaded = found.json()
    assert (loaded["model"], loaded["pinned"]) == (EXPRESSION, False)
    assert loaded["size_bytes"] == 2 * (32 * 32 + 16 * 32) * 4  # q_proj and v_proj of two layers, in float32
    assert loaded["vid"] == found.headers["X-Adapterhub-Variant"]
    asked = {"model": EXPRESSION, "prompt": "x", "max_tokens": 1}
    pinned = client.completions.create(**asked, extra_body={"adapterhub": {"execution": "merged"}})  # type: ignore[call-overload]
    assert client.completions.create(**asked).system_fingerprint == pinned.system_fingerprint  # type: ignore[call-overload]
    base = http.post(LOAD, json={"model": "admin/base", "pinned": True}).json()
    assert base["size_bytes"] > loaded["size_bytes"]


def test_what_cannot_be_loaded_is_refused_with_its_code(http: httpx.Client) -> None:
    wrong = http.post(LOAD, json={"model": "admin/nobody"})
    assert (wrong.status_code, wrong.json()["code"]) == (404, "model_not_found")
    unknown = http.post(LOAD, json={"model": "admin/base", "for_ever": True})
    assert (unknown.status_code, "for_ever" in unknown.text) == (400, True)
    with httpx.Client(base_url=http.base_url) as nobody:
        refused = nobody.post(LOAD, json={"model": "admin/base", "pinned": True})
    assert refused.status_code in (401, 403), refused.text
