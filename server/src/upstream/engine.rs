//! One model of the server as an engine: a request is one call, an answer streams through.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::{
    Context, EmbedTextRequest, Engine, Error, ErrorKind, OutputStream, Result, TextDelta,
    TextEmbedding, TextForm, TextRequest,
};
use futures_util::stream::{self, Stream};
use http::header::CONTENT_TYPE;
use hyper::body::{Body, Incoming};
use openai_bridge::UpstreamAnswer;
use serde_json::{Value as Json, json};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep, sleep};

use super::client::{self, BROKEN, Client, SILENCE, UNREACHABLE, broken, silent};

/// What may come behind the end of an answer, in time and in bytes, so that its connection is kept;
/// with more it is closed.
pub(super) const LINGER: Duration = Duration::from_millis(50);
const MAX_LINGER_BYTES: usize = 64 << 10;

/// A model of the server. Clones are the same model.
#[derive(Clone)]
pub(super) struct Remote {
    pub client: Arc<Client>,
    /// As the server calls it.
    pub model: Arc<str>,
    /// Requests that it answers now.
    pub in_flight: Arc<AtomicU32>,
    /// Hears that the server is not there.
    pub lost: Arc<Notify>,
    /// Ends requests at a server that hangs.
    pub hung: Arc<Notify>,
    /// Counts what came of answers.
    pub heard: Arc<AtomicU64>,
    /// [`LINGER`].
    pub linger: Duration,
}

/// A request's place among those in flight.
struct InFlight(Arc<AtomicU32>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Remote {
    fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.in_flight.clone())
    }

    fn minded(&self, error: Error) -> Error {
        if error.code() == Some(UNREACHABLE) {
            self.lost.notify_one();
        }
        error
    }
}

#[async_trait]
impl Engine<TextRequest> for Remote {
    async fn call(
        &self,
        request: TextRequest,
        context: Context,
    ) -> Result<OutputStream<TextRequest>> {
        let place = self.enter();
        let path = match request.form {
            TextForm::Chat => "/chat/completions",
            TextForm::Completion => "/completions",
        };
        let body = addressed(&self.model, &request.body)?;
        let mut hung = Box::pin(self.hung.clone().notified_owned());
        let response = tokio::select! {
            response = self.client.post(path, body, &context) => response,
            () = &mut hung => Err(hangs()),
        };
        let response = response.map_err(|error| self.minded(error))?;
        self.heard.fetch_add(1, Relaxed);
        let kind = response.headers().get(CONTENT_TYPE);
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let mut answer = UpstreamAnswer::new(request.form);
        let mut body = Some(response.into_body());
        if !is_stream && let Some(body) = body.take() {
            answer.whole(&client::whole(body).await?)?;
        }
        let silence = Box::pin(sleep(SILENCE));
        Ok(Box::pin(Answering {
            body,
            answer,
            silence,
            hung,
            heard: self.heard.clone(),
            linger: self.linger,
            left: None,
            is_failed: false,
            _place: place,
        }))
    }
}

/// The error of a request at a server that does nothing any more.
fn hangs() -> Error {
    Error::new(ErrorKind::Unavailable, "the model's server does not answer").with_code(BROKEN)
}

/// Names the model in a body and asks for a stream. The body is not read for that: it may be large.
fn addressed(model: &str, body: &Bytes) -> Result<Bytes> {
    let rest = body.trim_ascii().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    let rest = rest.ok_or_else(|| Error::invalid("the body is JSON, but no object"))?;
    let head = json!({
        "model": model,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let mut head = head.to_string();
    head.pop();
    if !rest.starts_with(b"}") {
        head.push(',');
    }
    Ok([head.as_bytes(), rest].concat().into())
}

/// An answer on its way; dropping it closes the connection.
struct Answering {
    /// None: all of it came.
    body: Option<Incoming>,
    answer: UpstreamAnswer,
    silence: Pin<Box<Sleep>>,
    hung: Pin<Box<OwnedNotified>>,
    heard: Arc<AtomicU64>,
    linger: Duration,
    /// Some: the answer is over, and so many bytes may come behind it.
    left: Option<usize>,
    is_failed: bool,
    /// Only held.
    _place: InFlight,
}

impl Answering {
    fn poll_delta(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Result<TextDelta>>> {
        loop {
            if let Some(delta) = self.answer.delta() {
                return Poll::Ready(Some(Ok(delta)));
            }
            let Some(body) = &mut self.body else {
                return Poll::Ready(None);
            };
            if self.answer.is_over() {
                ready!(self.poll_rest(cx));
                self.body = None;
                return Poll::Ready(None);
            }
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                if self.hung.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(Err(hangs())));
                }
                ready!(self.silence.as_mut().poll(cx));
                return Poll::Ready(Some(Err(silent(SILENCE))));
            };
            self.silence.as_mut().reset(Instant::now() + SILENCE);
            self.heard.fetch_add(1, Relaxed);
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.answer.push(&data)?;
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => {
                    self.body = None;
                    self.answer.end()?;
                }
            }
        }
    }
}

impl Answering {
    /// Waits a moment for what comes behind the end of the answer: a body that was read to its end
    /// leaves a connection that can be used again.
    fn poll_rest(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let mut left = self.left.unwrap_or_else(|| {
            self.silence.as_mut().reset(Instant::now() + self.linger);
            MAX_LINGER_BYTES
        });
        while let Some(body) = &mut self.body {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                self.left = Some(left);
                return self.silence.as_mut().poll(cx);
            };
            let Some(Ok(frame)) = frame else { break };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            // A frame without data counts too.
            match left.checked_sub(bytes.max(1)) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        Poll::Ready(())
    }
}

impl Stream for Answering {
    type Item = Result<TextDelta>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        if self.is_failed {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_delta(cx));
        if matches!(item, Some(Err(_))) {
            (self.is_failed, self.body) = (true, None);
        }
        Poll::Ready(item)
    }
}

#[async_trait]
impl Engine<EmbedTextRequest> for Remote {
    async fn call(
        &self,
        request: EmbedTextRequest,
        context: Context,
    ) -> Result<OutputStream<EmbedTextRequest>> {
        let _place = self.enter();
        let body =
            json!({"model": &*self.model, "input": request.text, "encoding_format": "float"});
        let response = self.client.post("/embeddings", body.to_string().into(), &context).await;
        let response = response.map_err(|error| self.minded(error))?;
        let answer = client::json(&client::whole(response.into_body()).await?)?;
        let values = answer["data"][0]["embedding"].as_array();
        let values = values.and_then(|values| {
            values.iter().map(|value| value.as_f64().map(|value| value as f32)).collect()
        });
        let values: Vec<f32> =
            values.ok_or_else(|| Error::internal("the model's server gave no vector"))?;
        let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
        let prompt_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let embedding = TextEmbedding { values, prompt_tokens };
        Ok(Box::pin(stream::once(std::future::ready(Ok(embedding)))))
    }
}

/// Reads what a server lists: each model's name and, if it tells it, its context.
///
/// Errors: it is no list of models.
pub(super) fn listed(list: &Json) -> Result<Vec<(String, u32)>> {
    let data = list["data"].as_array().ok_or_else(|| {
        let text = "the model's server lists no models: expected a list under `data`";
        Error::internal(text)
    })?;
    let read = |model: &Json| {
        let name = model["id"].as_str().filter(|name| !name.is_empty())?;
        let lengths = [&model["max_model_len"], &model["meta"]["n_ctx_train"]];
        let length = lengths.iter().find_map(|length| u32::try_from(length.as_u64()?).ok());
        Some((name.to_owned(), length.unwrap_or(0)))
    };
    Ok(data.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::config::UpstreamConfig;
    use super::*;

    #[test]
    fn a_body_gets_its_address_in_front() {
        let read = |body: &'static str| {
            let body = addressed("a \"b\"", &Bytes::from_static(body.as_bytes()));
            body.map(|body| serde_json::from_slice::<Json>(&body).unwrap())
        };
        let head = json!({"model": "a \"b\"", "stream": true,
            "stream_options": {"include_usage": true}});
        assert_eq!(read(" { } ").unwrap(), head);
        let mut with_prompt = head;
        with_prompt["prompt"] = "x".into();
        assert_eq!(read("{\"prompt\": \"x\"}").unwrap(), with_prompt);
        assert!(read("[]").is_err());
    }

    #[test]
    fn a_list_is_read_with_what_servers_say_of_contexts() {
        let list = json!({"data": [
            {"id": "vllm", "max_model_len": 10},
            {"id": "llama.cpp", "meta": {"n_ctx_train": 20}},
            {"id": "other"},
            {"name": "nameless"},
        ]});
        let expected = [("vllm", 10), ("llama.cpp", 20), ("other", 0)];
        let expected = expected.map(|(name, length)| (name.to_owned(), length));
        assert_eq!(listed(&list).unwrap(), expected);
        assert_eq!(listed(&json!({"data": []})).unwrap(), []);
        for other in [json!({}), json!({"object": "list", "data": {}}), json!([]), json!("busy")] {
            assert!(listed(&other).unwrap_err().message().contains("`data`"), "{other}");
        }
    }

    /// Answers requests with what an OpenAI server does, up to the `[DONE]` of a stream, and then with
    /// `end`; tells how many connections there were.
    async fn serve(listener: TcpListener, connections: Arc<AtomicU32>, end: Vec<u8>) {
        let chunk = json!({"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]});
        let events = format!("data: {chunk}\n\ndata: [DONE]\n\n");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let answer = format!("{head}{:x}\r\n{events}\r\n", events.len());
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Relaxed);
            let mut asked = vec![0; 65_536];
            while stream.read(&mut asked).await.is_ok_and(|length| length > 0) {
                stream.write_all(answer.as_bytes()).await.unwrap();
                sleep(Duration::from_millis(5)).await;
                if stream.write_all(&end).await.is_err() {
                    break;
                }
            }
        }
    }

    /// Asks a server twice, whose answers end with `end`; returns how many connections that took.
    async fn connections(end: &[u8]) -> u32 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = UpstreamConfig {
            base: format!("http://{}", listener.local_addr().unwrap()),
            authorization: None,
            authorities: None,
            context_length: None,
            kv_events: None,
        };
        let (tasks, connections) = (engine::Tasks::new(), Arc::new(AtomicU32::new(0)));
        tasks.spawn("upstream", serve(listener, connections.clone(), end.to_vec()));
        let remote = Remote {
            client: Arc::new(Client::new(&config).unwrap()),
            model: "m".into(),
            in_flight: Arc::default(),
            lost: Arc::default(),
            hung: Arc::default(),
            heard: Arc::default(),
            // A busy machine may take a while for the end of an answer.
            linger: Duration::from_secs(1),
        };
        for _ in 0..2 {
            let request = TextRequest { form: TextForm::Completion, body: "{}".into() };
            let started = Instant::now();
            let answer = remote.call(request, Context::new("a")).await.unwrap();
            let deltas: Vec<_> = answer.collect().await;
            assert!(deltas.len() == 2 && deltas.iter().all(Result::is_ok), "{deltas:?}");
            assert!(started.elapsed() < Duration::from_secs(10), "it waited for more");
            // The pool takes the connection back in a task of its own, which runs between these.
            for _ in 0..10 {
                sleep(Duration::from_millis(5)).await;
            }
        }
        tasks.cancel();
        connections.load(Relaxed)
    }

    #[tokio::test]
    async fn nobody_waits_for_what_comes_behind_the_end_of_an_answer() {
        assert_eq!(connections(b"0\r\n\r\n").await, 1, "the connection is kept");
        assert_eq!(connections(b"").await, 2, "a body without an end is left");
        let much = [b"20000\r\n", &[b' '; 0x20000][..], b"\r\n0\r\n\r\n"].concat();
        assert_eq!(connections(&much).await, 2, "too much is left");
    }
}
