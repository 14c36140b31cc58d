//! Traces as spans over OTLP: one span a request, with its steps as children.
//!
//! The SDK sends in batches from a thread of its own and drops what it cannot keep up with. A
//! `traceparent` header makes the request's span a child of the caller's (W3C Trace Context).

use std::sync::OnceLock;

use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status as SpanStatus, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::{Steps, Trace};

/// The exporter of spans; it is made with the first span.
#[derive(Debug)]
pub(super) struct Exporter {
    endpoint: String,
    provider: OnceLock<Option<SdkTracerProvider>>,
}

impl Exporter {
    /// Makes the exporter to a collector's OTLP over gRPC endpoint.
    pub(super) fn new(endpoint: String) -> Self {
        Self { endpoint, provider: OnceLock::new() }
    }

    fn tracer(&self) -> Option<SdkTracer> {
        let make = || match provider(&self.endpoint) {
            Ok(provider) => Some(provider),
            Err(error) => {
                tracing::warn!(%error, endpoint = self.endpoint, "spans cannot be exported");
                None
            }
        };
        self.provider.get_or_init(make).as_ref().map(|provider| provider.tracer("stator"))
    }

    /// Sends the spans of a request that is over, some time soon.
    pub(super) fn export(&self, trace: &Trace, steps: Steps) {
        let Some(tracer) = self.tracer() else { return };
        let parent = trace.parent.as_deref().and_then(parent);
        let parent = parent
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", steps.operation),
            KeyValue::new("gen_ai.provider.name", "stator"),
            KeyValue::new("gen_ai.request.model", trace.model.to_string()),
            KeyValue::new("gen_ai.response.model", trace.model.to_string()),
            KeyValue::new("stator.model.version", trace.version.to_string()),
            KeyValue::new("stator.request.id", trace.request_id.clone()),
        ];
        if steps.tokens != (0, 0) {
            let (prompt, text) = steps.tokens;
            attributes.push(KeyValue::new("gen_ai.usage.input_tokens", i64::from(prompt)));
            attributes.push(KeyValue::new("gen_ai.usage.output_tokens", i64::from(text)));
        }
        for tensor in &trace.tensors {
            let key = format!("stator.{}.{}", tensor.activity.to_ascii_lowercase(), tensor.name);
            let value = format!("{} [{}] {}", tensor.datatype, tensor.shape, tensor.data);
            attributes.push(KeyValue::new(key, value));
        }
        let end = trace.started + steps.total;
        let builder = tracer
            .span_builder(format!("{} {}", steps.operation, trace.model))
            .with_kind(SpanKind::Server)
            .with_start_time(trace.started)
            .with_attributes(attributes);
        let mut span = tracer.build_with_context(builder, &parent);
        if !steps.is_ok {
            span.set_status(SpanStatus::error("the request failed"));
        }
        let inside = Context::new().with_remote_span_context(span.span_context().clone());
        if trace.has_timestamps {
            let decoded = trace.started + steps.input;
            let parts = [
                ("decode", trace.started, decoded),
                ("queue", decoded, decoded + steps.queue),
                ("compute", decoded + steps.queue, end - steps.output),
                ("encode", end - steps.output, end),
            ];
            for (name, from, to) in parts {
                let builder = tracer.span_builder(name).with_start_time(from);
                tracer.build_with_context(builder, &inside).end_with_timestamp(to);
            }
        }
        span.end_with_timestamp(end);
    }

    /// Sends what is held back.
    pub(super) fn flush(&self) {
        if let Some(Some(provider)) = self.provider.get()
            && let Err(error) = provider.force_flush()
        {
            tracing::debug!(%error, "spans were lost");
        }
    }
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, Box<dyn std::error::Error + Send + Sync>> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name("stator").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Reads a `traceparent` header: `VERSION-TRACE-PARENT-FLAGS`, in hexadecimal.
fn parent(header: &str) -> Option<SpanContext> {
    let mut parts = header.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let has_form = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    if !has_form || version == "ff" {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_well_formed_or_ignored() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = parent(&format!("00-{trace}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(good.trace_id().to_string(), trace);
        assert!(good.is_sampled());
        for bad in
            ["", "00", "00-x-y-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]
        {
            assert!(parent(bad).is_none(), "{bad}");
        }
    }
}
