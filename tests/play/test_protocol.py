import json

import numpy as np
import pytest

from wm_gym.play import protocol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "act", "action": 3, "stamp": 12.5}', protocol.Act(3, 12.5)),
        ('{"type": "act", "action": null, "stamp": 0}', protocol.Act(None, 0)),
        ('{"type": "reset", "seed": null}', protocol.Reset(None)),
        ('{"type": "step"}', protocol.Step()),
        ('{"type": "go_back", "moment": 2}', protocol.GoBack(2)),
    ],
)
def test_a_message_of_the_page_is_understood(text, message):
    assert protocol.parse(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "null",
        '"act"',
        '{"type": "launch"}',
        '{"type": ["act"]}',
        '{"type": "act"}',
        '{"type": "act", "action": 1, "stamp": 0, "more": 1}',
        '{"type": "act", "action": true, "stamp": 0}',
        '{"type": "act", "action": 1.5, "stamp": 0}',
        '{"type": "act", "action": 1, "stamp": NaN}',
        '{"type": "reset", "seed": -1}',
        '{"type": "reset", "seed": 4294967296}',
        '{"type": "pause", "on": 1}',
        '{"type": "speed", "fps": 0}',
        '{"type": "speed", "fps": 1e9}',
        "[" * 1000,
        json.dumps({"type": "act", "action": 1, "stamp": 0, "x": "y" * protocol.MAX_MESSAGE_BYTES}),
    ],
)
def test_anything_else_is_refused_with_a_short_sentence(text):
    with pytest.raises(ValueError, match=r"\.$") as raised:
        protocol.parse(text)
    assert len(str(raised.value)) < 200


def test_a_frame_comes_back_as_it_was_sent():
    rng = np.random.default_rng(0)
    views = {name: rng.integers(0, 256, (5, 7, channels), np.uint8) for name, channels in [("dream", 3), ("real", 1)]}
    header, decoded = protocol.decode_frame(protocol.encode_frame({"step": 3}, views))
    assert header["step"] == 3
    assert list(decoded) == ["dream", "real"]
    assert all(np.array_equal(decoded[name], views[name]) for name in views)
