"""BrainLM (Ortega Caro et al., ICLR 2024): parcel time series in, one vector a segment out.

Two families carry the name. `nystromformer` (upstream's ``BrainLMForPretraining``) makes a token
of each parcel and stretch of time; `vitmae` (upstream's ``ViTMAEForPreTraining`` with padding, 111M
and 650M) reads the recording as an image of parcels by frames.
"""
