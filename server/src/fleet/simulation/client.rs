//! A client: what it gets is what an undisturbed worker would have said, or fails for a reason.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use engine::{Context, Engine, Error, ErrorKind, GenerateRequest, OutputStream};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::frontend::Frontend;
use super::search::{Watched, found_nobody};
use super::worker::{Fate, RETRY_AFTER};
use crate::pipeline::Migrate;
use crate::pipeline::testing::{collect, oracle};

/// The time after which a request hangs.
const HANGS: Duration = Duration::from_secs(1200);

pub(super) struct Client {
    pub(super) frontend: Arc<Frontend>,
    pub(super) migrate: Migrate<Watched>,
    /// Its request's id.
    pub(super) name: String,
}

impl Client {
    pub(super) async fn run(self, mut random: fastrand::Rng) {
        let world = &self.frontend.world;
        world.moments.sleep(random.u64(..10_000)).await;
        let request = oracle::request(&mut random);
        let expected = oracle::answer_of(&request);
        // Some go away after some outputs, and some are slow.
        let most = (random.u8(..4) == 0).then(|| random.usize(..30));
        let pause_ms = if random.u8(..4) == 0 { random.u64(1..500) } else { 0 };
        world.tell(format_args!("{} is asked", self.name));
        let answer = timeout(HANGS, self.read(request, most, pause_ms)).await;
        let Read { outputs, error, is_whole } = answer.expect("a request hangs");
        world.tell(format_args!("{} ends: {outputs:?}, {error:?}", self.name));
        if !is_whole {
            world.counts.cancelled.fetch_add(1, Relaxed);
            return;
        }
        let fates = world.fates(&self.name);
        if let Some(error) = error {
            assert!(!world.is_gentle, "{} failed: {error:?} {fates:?}", self.name);
            self.justify(&error, &fates);
            world.counts.failed.fetch_add(1, Relaxed);
            return;
        }
        let outputs: OutputStream<GenerateRequest> =
            Box::pin(futures_util::stream::iter(outputs.into_iter().map(Ok)));
        assert_eq!(collect(outputs).await.unwrap(), expected, "request {}", self.name);
        world.counts.migrated.fetch_add(fates.contains(&Fate::Lost).into(), Relaxed);
        world.counts.right.fetch_add(1, Relaxed);
    }

    /// Reads an answer, to so many outputs at most.
    async fn read(&self, request: GenerateRequest, most: Option<usize>, pause_ms: u64) -> Read {
        let mut read = Read { outputs: Vec::new(), error: None, is_whole: true };
        let mut stream = match self.migrate.call(request, Context::new(self.name.clone())).await {
            Ok(stream) => stream,
            Err(error) => return Read { error: Some(error), ..read },
        };
        loop {
            if most.is_some_and(|most| read.outputs.len() >= most) {
                read.is_whole = false;
                return read;
            }
            if pause_ms > 0 {
                self.frontend.world.moments.sleep(pause_ms).await;
            }
            match stream.next().await {
                Some(Ok(output)) => read.outputs.push(output),
                Some(Err(error)) => {
                    read.error = Some(error);
                    break;
                }
                None => break,
            }
        }
        assert!(stream.next().await.is_none(), "an item behind the end");
        read
    }

    /// Checks that a request had to fail. That a search may end without a worker is checked there.
    fn justify(&self, error: &Error, fates: &[Fate]) {
        let lost = fates.iter().filter(|&&fate| fate == Fate::Lost).count();
        if found_nobody(error) {
            assert!(self.migrate.engine.has_failed(), "{error}: no search ended so");
            let is_busy = error.kind() == ErrorKind::Overloaded;
            assert_eq!(error.retry_after(), is_busy.then_some(RETRY_AFTER));
            return;
        }
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error} is no reason");
        assert!(lost > self.migrate.limit as usize, "{error} {fates:?}");
    }
}

/// What was read.
struct Read {
    outputs: Vec<engine::GenerateOutput>,
    error: Option<Error>,
    /// Whether the client read to the end.
    is_whole: bool,
}
