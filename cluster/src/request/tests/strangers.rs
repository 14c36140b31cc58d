//! Workers that answer wrongly: what they say is never the client's fault, nor a panic.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Response};
use prost::Message;
use proto::worker as wire;

use super::*;

/// Serves every call with the same bytes and the trailers of a good end.
async fn stranger(body: Bytes) -> RemoteWorker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tasks = Tasks::new();
    let owner = tasks.clone();
    tasks.spawn("stranger", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            owner.spawn("connection", async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data(body.clone(), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    stream.send_trailers(trailers).unwrap();
                }
            });
        }
    });
    RemoteWorker::new(Tcp::new(address), ClientConfig::default(), &tasks).unwrap()
}

fn framed<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut frames = BytesMut::new();
    for message in messages {
        frames.put_u8(0);
        frames.put_u32(message.len() as u32);
        frames.put_slice(message);
    }
    frames.freeze()
}

#[tokio::test]
async fn half_a_message_is_no_good_end() {
    let output = wire::GenerateOutput { tokens: vec![1], ..Default::default() }.encode_to_vec();
    let whole = framed([output.as_slice(), output.as_slice()]);
    for cut in 1..=whole.len() / 2 {
        let worker = stranger(whole.slice(..whole.len() - cut)).await;
        let mut stream = worker.model("model").call(prompt(), in_time(LONG)).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), tokens(&[1]));
        let end = stream.next().await;
        match cut == whole.len() / 2 {
            true => assert!(end.is_none()),
            false => assert_eq!(end.unwrap().unwrap_err().kind(), ErrorKind::Unavailable),
        }
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_fault_of_the_workers() {
    let worker = stranger(framed([&[0xff, 0xff][..]])).await;
    let mut stream = worker.model("model").call(prompt(), in_time(LONG)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    let mut news = worker.watch("model", WatchOptions::default()).await.unwrap();
    assert_eq!(news.next().await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(worker.describe(LONG).await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(worker.fetch("hash", 10, LONG).await.unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn the_largest_number_of_an_event_is_one_like_any_other() {
    use wire::worker_event::Event;
    let event = |event, sequence| {
        wire::WorkerEvent { event: Some(event), sequence, epoch: 1 }.encode_to_vec()
    };
    let cleared = wire::kv_event::Event::Cleared(wire::KvCleared {});
    let kv = Event::Kv(wire::KvEvent { event: Some(cleared) });
    let messages = [event(Event::Gap(1), u64::MAX), event(kv.clone(), 0), event(kv, 1)];
    let worker = stranger(framed(messages.iter().map(Vec::as_slice))).await;
    let news = worker.watch("model", WatchOptions::default()).await.unwrap();
    let heard: Vec<_> = news.map(Result::unwrap).collect().await;
    let expected = [
        News::Gap { sequence: u64::MAX, missed: u64::MAX },
        News::Gap { sequence: 0, missed: 0 },
        News::Kv { epoch: 1, sequence: 1, event: engine::KvEvent::Cleared },
    ];
    assert_eq!(heard, expected);
}
