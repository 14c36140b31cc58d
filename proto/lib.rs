//! The bytes Stator promises: the KServe v2 and Triton gRPC contract.
