"""Sample webhooks, as a source's own sender would make them: for `leadwire send`, the demo and the tests.

Samples of presets are data, a JSON file each in this folder; a user's own source gets one made from the paths it declares.
"""

from __future__ import annotations

from console.samples.payloads import Lead, Sample, sample, sample_body, variants

__all__ = ["Lead", "Sample", "sample", "sample_body", "variants"]
