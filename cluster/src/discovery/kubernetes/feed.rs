//! One list of objects that is followed: listed, then watched from the listing's version on.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::{Error, ErrorKind, Result};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::client::{Call, Client, encode, unavailable};
use super::objects::{Change, List, Object, Status, WatchEvent};

/// Objects of one page of a listing.
const PAGE: u32 = 250;
/// The longest line of a watch: the largest object and what surrounds it.
const MAX_LINE_BYTES: usize = 8 << 20;
/// After what time the API server ends a watch, in seconds; the next one goes on behind it.
const WATCH_SECONDS: u32 = 290;
/// After what silence a watch counts as ended, though nobody said so: the API server should have
/// ended it by then.
const LONGEST_SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 20);
/// A watch that ends sooner than this is a failure.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// A list that is followed.
pub(super) struct Watcher {
    client: Client,
    path: String,
    selector: String,
    /// What the next watch begins behind.
    version: String,
    lines: Option<Lines>,
    opened: Instant,
    /// When the watch last told something.
    heard: Instant,
    /// When the API server last had forgotten our version.
    forgotten: Option<Instant>,
}

/// What a feed tells.
#[derive(Debug)]
pub(super) enum News {
    /// An object is there, or has changed.
    Put(Box<Object>),
    /// The object of a name is gone.
    Gone(String),
    /// Nothing but a sign of life.
    Bookmark,
    /// The watch has ended as it does now and then; it is to be opened again.
    Ended,
    /// The API server has forgotten what came behind our version: it is to be listed anew.
    Forgotten,
}

impl Watcher {
    pub(super) fn new(client: Client, path: String, selector: &str) -> Self {
        let (selector, version) = (encode(selector), String::new());
        let now = Instant::now();
        Self {
            client,
            path,
            selector,
            version,
            lines: None,
            opened: now,
            heard: now,
            forgotten: None,
        }
    }

    /// Lists all objects; the next watch begins behind them.
    pub(super) async fn list(&mut self) -> Result<Vec<Object>> {
        self.lines = None;
        let (objects, version) = self.read_all().await?;
        self.version = version;
        Ok(objects)
    }

    /// Lists all objects, and leaves the watch as it is.
    pub(super) async fn peek(&self) -> Result<Vec<Object>> {
        Ok(self.read_all().await?.0)
    }

    async fn read_all(&self) -> Result<(Vec<Object>, String)> {
        let (mut objects, mut more) = (Vec::new(), String::new());
        let mut version = None;
        loop {
            let path = format!(
                "{}?labelSelector={}&limit={PAGE}&continue={}",
                self.path,
                self.selector,
                encode(&more)
            );
            let page: List = self.client.call(Call::get(&path)).await?;
            objects.extend(page.items);
            // A watch from the first page on tells of every change that the later pages miss.
            let version = version.get_or_insert(page.metadata.resource_version);
            more = page.metadata.more;
            if more.is_empty() {
                return Ok((objects, std::mem::take(version)));
            }
        }
    }

    /// Asks for one object, to see whether the API server is there.
    pub(super) async fn probe(&self) -> Result<()> {
        let path = format!("{}?labelSelector={}&limit=1", self.path, self.selector);
        Ok(self.client.done(Call::get(&path)).await?)
    }

    /// Watches from the last version on.
    pub(super) async fn open(&mut self) -> Result<()> {
        let path = format!(
            "{}?labelSelector={}&watch=true&allowWatchBookmarks=true&resourceVersion={}\
             &timeoutSeconds={WATCH_SECONDS}",
            self.path,
            self.selector,
            encode(&self.version)
        );
        self.opened = Instant::now();
        self.heard = self.opened;
        self.lines = match self.client.open(&path).await {
            Ok(body) => Some(Lines::new(body)),
            // The next news will be that.
            Err(refused) if refused.status == StatusCode::GONE => None,
            Err(refused) => return Err(refused.into()),
        };
        Ok(())
    }

    /// Returns the next news. Dropping the future loses none.
    pub(super) async fn next(&mut self) -> Result<News> {
        let Some(lines) = &mut self.lines else {
            return self.forgotten();
        };
        let Ok(line) = timeout_at(self.heard + LONGEST_SILENCE, lines.next()).await else {
            debug!(path = self.path, "the watch is silent, opening another");
            self.lines = None;
            return Ok(News::Ended);
        };
        self.heard = Instant::now();
        let Some(line) = line? else {
            self.lines = None;
            if self.opened.elapsed() < SHORTEST_WATCH {
                return Err(unavailable(&format!("{}: the watch ended at once", self.path)));
            }
            return Ok(News::Ended);
        };
        self.read(&line)
    }

    fn read(&mut self, line: &[u8]) -> Result<News> {
        let wrong = |error: serde_json::Error| {
            unavailable(&format!("{}: cannot read what the watch tells: {error}", self.path))
        };
        let event: WatchEvent<'_> = serde_json::from_slice(line).map_err(wrong)?;
        if event.kind == Change::Error {
            let status: Status = serde_json::from_str(event.object.get()).map_err(wrong)?;
            self.lines = None;
            return match status.code {
                410 => self.forgotten(),
                _ => Err(unavailable(&format!("{}: {}", self.path, status.message))),
            };
        }
        let object: Object = serde_json::from_str(event.object.get()).map_err(wrong)?;
        self.version.clone_from(&object.metadata.resource_version);
        Ok(match event.kind {
            Change::Bookmark => News::Bookmark,
            Change::Deleted => News::Gone(object.metadata.name),
            _ => News::Put(Box::new(object)),
        })
    }

    /// Asks for a new listing; soon after another one that is a failure, so that nobody lists
    /// without a pause.
    fn forgotten(&mut self) -> Result<News> {
        let before = self.forgotten.replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < SHORTEST_WATCH) {
            return Err(unavailable(&format!("{}: listings are forgotten at once", self.path)));
        }
        debug!(path = self.path, version = self.version, "listing anew");
        Ok(News::Forgotten)
    }
}

/// The lines of an answer.
struct Lines {
    body: Incoming,
    whole: VecDeque<Bytes>,
    /// The beginning of a line whose end has not come yet.
    rest: BytesMut,
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self { body, whole: VecDeque::new(), rest: BytesMut::new() }
    }

    /// Returns the next line that is not empty, or nothing at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| {
                let text = format!("kubernetes: the watch broke: {error}");
                Error::new(ErrorKind::Unavailable, text).with_source(error)
            })?;
            if let Ok(data) = frame.into_data() {
                self.take(&data)?;
            }
        }
    }

    fn take(&mut self, mut data: &[u8]) -> Result<()> {
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&data[..end]);
            let line = self.rest.split().freeze();
            if !line.is_empty() {
                self.whole.push_back(line);
            }
            data = &data[end + 1..];
        }
        self.rest.extend_from_slice(data);
        match self.rest.len() <= MAX_LINE_BYTES {
            true => Ok(()),
            false => Err(unavailable(&format!(
                "the watch tells more than {MAX_LINE_BYTES} bytes at once"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use async_trait::async_trait;
    use engine::Tasks;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::super::Config;
    use super::*;
    use crate::request::{Connector, Io};

    /// Hands the other end of each connection to the test.
    struct Memory(mpsc::Sender<DuplexStream>);

    #[async_trait]
    impl Connector for Memory {
        async fn connect(&self) -> io::Result<Box<dyn Io>> {
            let (here, there) = duplex(4096);
            self.0.send(there).await.unwrap();
            Ok(Box::new(here))
        }

        fn address(&self) -> &str {
            "memory:0"
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_falls_silent_is_opened_again() {
        let (sender, mut connections) = mpsc::channel::<DuplexStream>(1);
        let tasks = Tasks::new();
        tasks.spawn("api server", async move {
            let mut open = Vec::new();
            while let Some(mut stream) = connections.recv().await {
                let mut asked = [0; 4096];
                assert!(stream.read(&mut asked).await.unwrap() > 0);
                let line = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#;
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                let answer = format!("{head}{:x}\r\n{line}\n\r\n", line.len() + 1);
                stream.write_all(answer.as_bytes()).await.unwrap();
                open.push(stream);
            }
        });
        let config = Config::new("http://memory:0", "fleet");
        let client = Client::new(&config, Some(Arc::new(Memory(sender))), &tasks).unwrap();
        let mut feed = Watcher::new(client, "/watched".into(), "a=b");
        for _ in 0..3 {
            feed.open().await.unwrap();
            assert!(matches!(feed.next().await, Ok(News::Bookmark)));
            let heard = Instant::now();
            assert!(matches!(feed.next().await, Ok(News::Ended)));
            assert_eq!(heard.elapsed().as_secs(), LONGEST_SILENCE.as_secs());
        }
        tasks.cancel();
    }
}
