//! The service's methods: each a few lines that translate, call and translate back.

use std::sync::Arc;
use std::time::Instant;

use engine::{Error, ErrorKind, InferOutput, Tasks};
use futures_util::{StreamExt, TryStreamExt};
use http::HeaderMap;
use proto::inference::grpc_inference_service_server::GrpcInferenceService;
use proto::inference::*;
use proto::{Envelope, Reply};
use tonic::{Request, Response, Status, Streaming};

use super::metadata;
use super::stream::{Inbound, Session, StreamOptions};
use super::timeout::deadline;
use crate::inference::{Asked, Call, Observation};
use crate::metrics::Metrics;
use crate::models::{Models, VERSION};
use crate::status;

/// What every call of the door shares.
pub(crate) struct Shared {
    pub models: Arc<Models>,
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server stops accepting requests.
    pub accepting: Tasks,
    pub max_stream_requests: usize,
    pub server_name: String,
}

impl Shared {
    /// Begins to observe a request.
    pub(crate) fn observe(&self, rpc: &'static str) -> Observation {
        Observation::begin(self.metrics.clone(), rpc)
    }

    /// Refuses new requests while the server shuts down.
    pub(crate) fn admit(&self) -> engine::Result<()> {
        match self.accepting.is_cancelled() {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Unavailable,
                "GRPC server is shutting down and has stopped accepting new requests.",
            )),
        }
    }
}

/// The KServe v2 service with Triton's extensions.
#[derive(Clone)]
pub(crate) struct KserveService {
    shared: Arc<Shared>,
}

impl KserveService {
    /// Makes the service.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Answers a metadata-like call and counts it.
    fn answer<T>(
        &self,
        rpc: &'static str,
        answer: engine::Result<T>,
    ) -> Result<Response<T>, Status> {
        let mut observation = self.shared.observe(rpc);
        observation.end(answer.as_ref().map(|_| ()));
        answer.map(Response::new).map_err(|error| status::grpc(&error))
    }

    /// Answers a call that is known and not offered yet.
    fn unimplemented<T>(&self, rpc: &'static str, what: &str) -> Result<Response<T>, Status> {
        let text = format!("{rpc} is not offered by this server: {what}");
        self.answer(rpc, Err(Error::new(ErrorKind::Unimplemented, text)))
    }

    /// Answers a ModelInfer call.
    pub(super) async fn unary(
        &self,
        headers: &HeaderMap,
        envelope: Envelope,
    ) -> Result<Reply<ModelInferResponse>, Status> {
        let mut observation = self.shared.observe("ModelInfer");
        let deadline = self.shared.admit().and_then(|()| deadline(headers));
        let call = match deadline {
            Ok(deadline) => {
                Call::prepare(&self.shared.models, Asked { envelope, deadline, is_unary: true })
                    .map_err(|refusal| (refusal.model, refusal.error))
            }
            Err(error) => Err((None, error)),
        };
        match call {
            Ok(call) => {
                observation.accepted(call.model.clone(), call.batch, call.deadline());
                let result = self.infer(call, &mut observation).await;
                observation.end(result.as_ref().map(|_| ()));
                result.map_err(|error| status::grpc(&error))
            }
            Err((model, error)) => {
                observation.refused(model, &error);
                Err(status::grpc(&error))
            }
        }
    }

    /// Begins a ModelStreamInfer call.
    pub(super) fn session(&self, headers: &HeaderMap, inbound: Inbound) -> Result<Session, Status> {
        self.shared.admit().map_err(|error| status::grpc(&error))?;
        let options = StreamOptions {
            deadline: deadline(headers).map_err(|error| status::grpc(&error))?,
            has_true_errors: headers.get("triton_grpc_error").is_some_and(|v| v == "true"),
        };
        Ok(Session::new(inbound, self.shared.clone(), options))
    }

    async fn infer(
        &self,
        call: Call,
        observation: &mut Observation,
    ) -> engine::Result<Reply<ModelInferResponse>> {
        let id = call.id.clone();
        let (model, request, context) = call.into_parts();
        let name = model.name.clone();
        let mut stream = Call::start(model, request, context).await?;
        let output = stream.next().await.unwrap_or_else(|| {
            Err(Error::internal(format!("model '{name}' ended without a response")))
        })?;
        let InferOutput { tensors, parameters, queue_time, .. } = output;
        let started = Instant::now();
        let head = tensor::wire::ResponseHead {
            model_name: &name,
            model_version: VERSION,
            id: &id,
            parameters: &parameters,
        };
        let bytes = tensor::wire::encode_response(&head, &tensors);
        observation.queued(queue_time);
        observation.encoded(started.elapsed());
        Ok(Reply::Encoded(bytes))
    }
}

const NO_SHARED_MEMORY: &str = "it has no shared memory; send tensors in the request";
const NO_MODEL_CONTROL: &str = "models are chosen when it starts";

#[tonic::async_trait]
impl GrpcInferenceService for KserveService {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        self.answer("ServerLive", Ok(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.shared.models.are_ready() && self.shared.admit().is_ok();
        self.answer("ServerReady", Ok(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        self.answer("ModelReady", metadata::model_ready(&self.shared, request.get_ref()))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        self.answer("ServerMetadata", Ok(metadata::server(&self.shared)))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let answer = metadata::model(&self.shared.models, request.get_ref());
        self.answer("ModelMetadata", answer)
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let answer = metadata::config(&self.shared.models, request.get_ref());
        self.answer("ModelConfig", answer)
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let answer = metadata::statistics(&self.shared.models, request.get_ref());
        self.answer("ModelStatistics", answer)
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let answer = metadata::index(&self.shared.models, request.get_ref());
        self.answer("RepositoryIndex", answer)
    }

    async fn model_infer(
        &self,
        request: Request<Envelope>,
    ) -> Result<Response<Reply<ModelInferResponse>>, Status> {
        let (metadata, _, envelope) = request.into_parts();
        self.unary(&metadata.into_headers(), envelope).await.map(Response::new)
    }

    type ModelStreamInferStream = Session;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Session>, Status> {
        let (metadata, _, inbound) = request.into_parts();
        let inbound = Box::pin(inbound.map_err(status::oversized));
        self.session(&metadata.into_headers(), inbound).map(Response::new)
    }

    async fn repository_model_load(
        &self,
        _: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        self.unimplemented("RepositoryModelLoad", NO_MODEL_CONTROL)
    }

    async fn repository_model_unload(
        &self,
        _: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        self.unimplemented("RepositoryModelUnload", NO_MODEL_CONTROL)
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<SystemSharedMemoryStatusResponse>, Status> {
        self.unimplemented("SystemSharedMemoryStatus", NO_SHARED_MEMORY)
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<SystemSharedMemoryRegisterResponse>, Status> {
        self.unimplemented("SystemSharedMemoryRegister", NO_SHARED_MEMORY)
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<SystemSharedMemoryUnregisterResponse>, Status> {
        self.unimplemented("SystemSharedMemoryUnregister", NO_SHARED_MEMORY)
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<CudaSharedMemoryStatusResponse>, Status> {
        self.unimplemented("CudaSharedMemoryStatus", NO_SHARED_MEMORY)
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<CudaSharedMemoryRegisterResponse>, Status> {
        self.unimplemented("CudaSharedMemoryRegister", NO_SHARED_MEMORY)
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<CudaSharedMemoryUnregisterResponse>, Status> {
        self.unimplemented("CudaSharedMemoryUnregister", NO_SHARED_MEMORY)
    }

    async fn trace_setting(
        &self,
        _: Request<TraceSettingRequest>,
    ) -> Result<Response<TraceSettingResponse>, Status> {
        self.unimplemented("TraceSetting", "it records no traces")
    }

    async fn log_settings(
        &self,
        _: Request<LogSettingsRequest>,
    ) -> Result<Response<LogSettingsResponse>, Status> {
        self.unimplemented("LogSettings", "its log is set by --log-level and --log-format")
    }
}
