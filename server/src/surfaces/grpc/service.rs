//! The service's methods: each a few lines that translate, call and translate back.

use std::sync::Arc;

use futures_util::TryStreamExt;
use http::{Extensions, HeaderMap};
use proto::inference::grpc_inference_service_server::GrpcInferenceService;
use proto::inference::*;
use proto::{Envelope, Reply};
use tensor::Tensor;
use tensor::wire::ResponseHead;
use tonic::{Request, Response, Status, Streaming};

use super::messages::Costs;
use super::stream::{Inbound, Inferred, Session, StreamOptions};
use super::timeout::Deadline;
use crate::security::Grant;
use crate::serving::inference::{self, Asked, Observation};
use crate::serving::shared::Shared;
use crate::serving::{catalog, control};
use crate::support::buffers::IsLone;
use crate::support::forwarding::Forwarding;
use crate::support::status;
use crate::surfaces::listener::Call;

/// The KServe v2 service with Triton's extensions.
#[derive(Clone)]
pub(crate) struct KserveService {
    shared: Arc<Shared>,
    forwarding: Forwarding,
}

impl KserveService {
    /// Makes the service.
    pub(crate) fn new(shared: Arc<Shared>, forwarding: Forwarding) -> Self {
        Self { shared, forwarding }
    }

    /// Returns what the calls share.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Answers a metadata-like call and counts it.
    fn answer<T>(
        &self,
        rpc: &'static str,
        answer: engine::Result<T>,
    ) -> Result<Response<T>, Status> {
        let mut observation = Observation::begin(&self.shared, rpc, false);
        observation.end(answer.as_ref().map(|_| ()));
        answer.map(Response::new).map_err(|error| status::grpc(&error))
    }

    /// Answers a ModelInfer call; `is_lone` says that its connection has no other one.
    pub(super) async fn unary(
        &self,
        (headers, extensions): (&HeaderMap, &Extensions),
        is_lone: bool,
        (envelope, held): Inferred,
    ) -> Result<Reply<ModelInferResponse>, Status> {
        let observation = Observation::begin(&self.shared, "ModelInfer", is_lone);
        let asked = Ok(Asked {
            envelope,
            held,
            grant: Grant::of(extensions),
            deadline: Deadline::of(extensions),
            forwarded: self.forwarding.parameters(headers),
            parent: inference::parent(headers),
            is_unary: true,
        });
        let encode = |head: &ResponseHead<'_>, tensors: &[Tensor]| {
            let answer = tensor::wire::encode_response(head, tensors);
            Ok(Reply::Encoded(self.shared.buffers.answer(answer, is_lone)?))
        };
        let reply = inference::unary(&self.shared, observation, asked, encode).await;
        reply.map_err(|error| status::grpc(&error))
    }

    /// Begins a ModelStreamInfer call.
    pub(super) fn session(
        &self,
        (headers, extensions): (&HeaderMap, &Extensions),
        inbound: Inbound,
    ) -> Result<Session, Status> {
        self.shared.admit().map_err(|error| status::grpc(&error))?;
        let options = StreamOptions {
            grant: Grant::of(extensions),
            deadline: Deadline::of(extensions),
            parent: inference::parent(headers),
            forwarded: self.forwarding.parameters(headers),
            has_true_errors: headers.get("triton_grpc_error").is_some_and(|v| v == "true"),
        };
        let call = extensions.get::<Call>().cloned();
        Ok(Session::new((inbound, call), self.shared.clone(), options))
    }
}

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
        let ready = catalog::server_ready(&self.shared);
        self.answer("ServerReady", Ok(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.get_ref();
        let ready = catalog::model_ready(&self.shared, name, version);
        self.answer("ModelReady", ready.map(|ready| ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        self.answer("ServerMetadata", Ok(catalog::server(&self.shared)))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.get_ref();
        let answer = catalog::model(&self.shared, name, version);
        self.answer("ModelMetadata", answer)
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let ModelConfigRequest { name, version } = request.get_ref();
        let answer = catalog::config(&self.shared, name, version);
        let answer = answer.map(|config| ModelConfigResponse { config: Some(config) });
        self.answer("ModelConfig", answer)
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let ModelStatisticsRequest { name, version } = request.get_ref();
        let answer = catalog::statistics(&self.shared, name, version);
        self.answer("ModelStatistics", answer)
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let RepositoryIndexRequest { repository_name, ready } = request.get_ref();
        let answer = catalog::index(&self.shared, repository_name, *ready).await;
        self.answer("RepositoryIndex", answer)
    }

    async fn model_infer(
        &self,
        request: Request<Envelope>,
    ) -> Result<Response<Reply<ModelInferResponse>>, Status> {
        let (metadata, extensions, envelope) = request.into_parts();
        let caller = (&metadata.into_headers(), &extensions);
        let held = Costs::of(&extensions).next();
        self.unary(caller, IsLone::of(&extensions), (envelope, held)).await.map(Response::new)
    }

    type ModelStreamInferStream = Session;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Session>, Status> {
        let (metadata, extensions, inbound) = request.into_parts();
        let costs = Costs::of(&extensions);
        let inbound = inbound.map_ok(move |envelope| (envelope, costs.next()));
        let inbound = Box::pin(inbound.map_err(status::oversized));
        self.session((&metadata.into_headers(), &extensions), inbound).map(Response::new)
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        // The extensions hold the memory of the files.
        let (_, _extensions, request) = request.into_parts();
        let loaded = control::load(&self.shared, request).await;
        let answer =
            loaded.map(|model_name| RepositoryModelLoadResponse { model_name, is_loaded: true });
        self.answer("RepositoryModelLoad", answer)
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let request = request.into_inner();
        let unloaded = control::unload(&self.shared, request).await;
        let answer = unloaded
            .map(|model_name| RepositoryModelUnloadResponse { model_name, is_unloaded: true });
        self.answer("RepositoryModelUnload", answer)
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<SystemSharedMemoryStatusResponse>, Status> {
        let found = self.shared.regions.system_status(&request.get_ref().name);
        let named = found.map(|regions| {
            let regions = regions.into_iter().map(|region| (region.name.clone(), region)).collect();
            SystemSharedMemoryStatusResponse { regions }
        });
        self.answer("SystemSharedMemoryStatus", named)
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<SystemSharedMemoryRegisterResponse>, Status> {
        let done = self.shared.regions.register_system(request.get_ref());
        let answer = done.map(|()| SystemSharedMemoryRegisterResponse {});
        self.answer("SystemSharedMemoryRegister", answer)
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<SystemSharedMemoryUnregisterResponse>, Status> {
        let done = self.shared.regions.unregister_system(&request.get_ref().name);
        let answer = done.map(|()| SystemSharedMemoryUnregisterResponse {});
        self.answer("SystemSharedMemoryUnregister", answer)
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<CudaSharedMemoryStatusResponse>, Status> {
        let found = self.shared.regions.cuda_status(&request.get_ref().name);
        let named = found.map(|regions| {
            let regions = regions.into_iter().map(|region| (region.name.clone(), region)).collect();
            CudaSharedMemoryStatusResponse { regions }
        });
        self.answer("CudaSharedMemoryStatus", named)
    }

    async fn cuda_shared_memory_register(
        &self,
        request: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<CudaSharedMemoryRegisterResponse>, Status> {
        let done = self.shared.regions.register_cuda(request.get_ref());
        let answer = done.map(|()| CudaSharedMemoryRegisterResponse {});
        self.answer("CudaSharedMemoryRegister", answer)
    }

    async fn cuda_shared_memory_unregister(
        &self,
        request: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<CudaSharedMemoryUnregisterResponse>, Status> {
        let done = self.shared.regions.unregister_cuda(&request.get_ref().name);
        let answer = done.map(|()| CudaSharedMemoryUnregisterResponse {});
        self.answer("CudaSharedMemoryUnregister", answer)
    }

    async fn trace_setting(
        &self,
        request: Request<TraceSettingRequest>,
    ) -> Result<Response<TraceSettingResponse>, Status> {
        let answer = control::trace_setting(&self.shared, request.into_inner());
        self.answer("TraceSetting", answer)
    }

    async fn log_settings(
        &self,
        request: Request<LogSettingsRequest>,
    ) -> Result<Response<LogSettingsResponse>, Status> {
        let answer = control::log_settings(&self.shared, request.into_inner());
        self.answer("LogSettings", answer)
    }
}
