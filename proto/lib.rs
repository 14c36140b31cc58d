//! The bytes Stator promises: the KServe v2 and Triton gRPC contract.
//!
//! What clients see is `inference`; what frontends and workers say to one another is [`worker`].
//! Messages and services are generated from `proto/*.proto`. `bytes` fields are
//! [`Bytes`](bytes::Bytes) that share the buffer they were decoded from; the tensors of a
//! request come as [`Payload`]s, which may even lie in several buffers.

mod apart;
mod codec;
mod cost;
mod cursor;
mod envelope;
mod fields;
mod payload;
mod received;

pub use apart::decode_apart;
pub use codec::Reply;
pub use cost::{Cost, cost_of};
pub use envelope::{Envelope, MAX_TENSORS, Malformed};
pub use fields::{Nest, Uncounted, count_fields};
pub use payload::Payload;
pub use received::{BadPrefix, PREFIX_BYTES, Received};

/// The messages, the client and the server of package `inference`.
pub mod inference {
    mod messages {
        #![expect(clippy::all, reason = "generated")]
        include!(concat!(env!("OUT_DIR"), "/inference.rs"));
    }
    mod service {
        #![expect(
            clippy::too_many_lines,
            clippy::allow_attributes,
            unreachable_pub,
            reason = "generated"
        )]
        include!(concat!(env!("OUT_DIR"), "/inference.GRPCInferenceService.rs"));
    }

    pub use messages::*;

    /// The server's side of the service.
    pub mod grpc_inference_service_server {
        pub use super::service::g_r_p_c_inference_service_server::{
            GRPCInferenceService as GrpcInferenceService,
            GRPCInferenceServiceServer as GrpcInferenceServiceServer,
        };
    }
}

/// The messages, the client and the server of package `stator.worker.v1`.
pub mod worker {
    #![expect(clippy::all, clippy::allow_attributes, clippy::too_many_lines, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/stator.worker.v1.rs"));
}

/// The encoded descriptors of every message and service of `inference`, which server reflection shows.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
