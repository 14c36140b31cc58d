//! Answers of engines that take texts, as those of engines that take tokens look.

use std::pin::Pin;
use std::task::{Context as Poller, Poll};

use engine::{OutputStream, Result, TextRequest};
use futures_util::stream::Stream;
use openai_bridge::{TextAnswers, TextOutput};

/// The answers of a request's prompts, as they come.
pub(super) struct WordedStream {
    /// One a prompt; none: it has ended.
    rows: Vec<Option<OutputStream<TextRequest>>>,
    answers: TextAnswers,
    /// The prompt that is looked at first, so that none waits for ever behind a fast one.
    first: usize,
}

impl WordedStream {
    pub(super) fn new(rows: Vec<OutputStream<TextRequest>>, answers: TextAnswers) -> Self {
        Self { rows: rows.into_iter().map(Some).collect(), answers, first: 0 }
    }

    /// Takes from one prompt until there is news; pending when it has none for now.
    fn row(&mut self, row: usize, cx: &mut Poller<'_>) -> Poll<Result<TextOutput>> {
        let Some(stream) = &mut self.rows[row] else {
            return Poll::Pending;
        };
        loop {
            match std::task::ready!(stream.as_mut().poll_next(cx)) {
                Some(delta) => {
                    let news = delta.and_then(|delta| self.answers.push(row, delta));
                    if let Some(news) = news.transpose() {
                        return Poll::Ready(news);
                    }
                }
                None => {
                    self.rows[row] = None;
                    return Poll::Ready(self.answers.end(row));
                }
            }
        }
    }
}

impl Stream for WordedStream {
    type Item = Result<TextOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let count = this.rows.len();
        if this.rows.iter().all(Option::is_none) {
            return Poll::Ready(None);
        }
        for offset in 0..count {
            let row = (this.first + offset) % count;
            if let Poll::Ready(news) = this.row(row, cx) {
                this.first = row + 1;
                if news.is_err() {
                    this.rows.clear();
                }
                return Poll::Ready(Some(news));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::testing::{Scripted, Step};
    use engine::{Context, Engine, Error, FinishReason, TextDelta};
    use futures_util::StreamExt;
    use openai_bridge::TextBridge;
    use openai_bridge::api::{Body, Fold, Stamp, completions};
    use serde_json::json;

    use super::super::{TextBackend, TextEngine};
    use super::*;
    use crate::pipeline::{Limits, Thresholds};

    fn told(content: &str, finish: Option<FinishReason>) -> Step<TextDelta> {
        Step::Output(TextDelta { content: content.into(), finish, ..TextDelta::default() })
    }

    async fn ask(script: Vec<Step<TextDelta>>) -> Result<Fold> {
        let bridge = Arc::new(TextBridge::of_texts("m", 0, false));
        let stamp = Stamp { id: String::new(), created: 0, model: String::new() };
        let body: Body = [("prompt".to_owned(), json!(["a", "b"]))].into_iter().collect();
        let completion = completions::read(&bridge, body, stamp)?.completion;
        let below = TextBackend::Texts {
            generate: Arc::new(Scripted::<TextRequest>::new(script)),
            embed: Arc::new(Scripted::empty_answers(0)),
        };
        let thresholds = Arc::new(Thresholds::new(Limits::default(), Arc::new(|_| {})));
        let engine = TextEngine::new(bridge, below, thresholds);
        let mut stream = engine.call(completion, Context::new("r")).await?;
        let mut fold = Fold::default();
        while let Some(output) = stream.next().await {
            fold.push(output?);
        }
        Ok(fold)
    }

    #[tokio::test]
    async fn prompts_are_answered_side_by_side() {
        let stop = Some(FinishReason::Stop);
        let fold = ask(vec![told("x", None), told("y", stop)]).await.unwrap();
        let texts: Vec<&str> = fold.told.iter().map(|told| told.content.as_str()).collect();
        assert_eq!(texts, ["xy", "xy"]);
        assert!(fold.told.iter().all(|told| told.finish.is_some()));
    }

    #[tokio::test]
    async fn an_error_and_an_end_too_early_end_the_answer() {
        let lost = Step::Error(Error::internal("lost"));
        assert_eq!(ask(vec![told("x", None), lost]).await.unwrap_err().message(), "lost");
        let early = ask(vec![told("x", None)]).await.unwrap_err();
        assert!(early.message().contains("finish reason"), "{early}");
    }
}
