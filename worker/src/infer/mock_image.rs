//! `image` and `video`: models that paint a pattern for a prompt, as stand-ins for diffusion.
//!
//! They show which tensors a model of that kind has; the OpenAI door finds such models by them.

use async_trait::async_trait;
use engine::{Context, Engine, Error, InferOutput, InferRequest, OutputStream, Result};
use futures_util::{StreamExt, stream};
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};

use super::input;

/// Longest side of a picture, in pixels.
const MAX_SIDE: u32 = 2048;

/// Most frames of a video.
const MAX_FRAMES: u32 = 240;

/// Paints one PNG for a prompt as `image`, or as `video` one a response for each frame.
#[derive(Clone, Copy, Debug)]
pub struct MockImageModel {
    output: &'static str,
}

/// What one request asks for.
#[derive(Clone, Copy, Debug)]
struct Order {
    seed: u64,
    width: u32,
    height: u32,
    frames: u32,
}

impl MockImageModel {
    /// Makes the model of pictures.
    pub fn images() -> Self {
        Self { output: "image" }
    }

    /// Makes the model of videos.
    pub fn videos() -> Self {
        Self { output: "video" }
    }

    /// Returns its configuration.
    pub fn config(self, name: &str) -> ModelConfig {
        let optional =
            |name: &'static str, datatype| TensorSpec::new(name, datatype, [1]).optional();
        let mut inputs = vec![
            TensorSpec::new("prompt", Datatype::Bytes, [1]),
            optional("width", Datatype::Int32),
            optional("height", Datatype::Int32),
            optional("seed", Datatype::Uint64),
        ];
        let is_video = self.output == "video";
        if is_video {
            inputs.push(optional("frames", Datatype::Int32));
        }
        let outputs = vec![TensorSpec::new(self.output, Datatype::Bytes, [1])];
        ModelConfig { decoupled: is_video, ..ModelConfig::new(name, 0, inputs, outputs) }
    }

    fn order(self, request: &InferRequest) -> Result<Order> {
        let prompt = input(request, "prompt")?.data.to_bytes();
        let number = |name: &str, default: u32, most: u32| {
            let value = request.input(name).and_then(|input| input.values::<i32>()?.next());
            match value {
                None => Ok(default),
                Some(value) if value > 0 && value as u32 <= most => Ok(value as u32),
                Some(value) => {
                    let text = format!("input '{name}': expected 1 to {most}, got {value}");
                    Err(Error::invalid(text).with_param(name))
                }
            }
        };
        let seed = request.input("seed").and_then(|input| input.values::<u64>()?.next());
        let hash = prompt.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        Ok(Order {
            seed: hash ^ seed.unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            width: number("width", 256, MAX_SIDE)?,
            height: number("height", 256, MAX_SIDE)?,
            frames: number("frames", if self.output == "video" { 8 } else { 1 }, MAX_FRAMES)?,
        })
    }
}

#[async_trait]
impl Engine<InferRequest> for MockImageModel {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let (order, output) = (self.order(&request)?, self.output);
        let frames = stream::iter(0..order.frames).then(move |frame| async move {
            let painted = tokio::task::spawn_blocking(move || paint(order, frame)).await;
            let failed = |error| Error::internal("the painter failed").with_source(error);
            let png = painted.map_err(failed)??;
            let tensors = vec![Tensor::from_elements(output, vec![1], [png])];
            Ok(InferOutput { tensors, is_last: frame + 1 == order.frames, ..Default::default() })
        });
        Ok(Box::pin(frames))
    }
}

/// Paints one frame: a gradient whose colours are the seed's.
fn paint(order: Order, frame: u32) -> Result<Vec<u8>> {
    let Order { seed, width, height, .. } = order;
    let [r, g, b, p, q, ..] = seed.to_le_bytes();
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            let (across, down) = (x * 255 / width, y * 255 / height);
            let wave = (x * u32::from(p % 7 + 1) + y * u32::from(q % 7 + 1) + frame * 8) as u8;
            pixels.extend([r ^ across as u8, g ^ down as u8, b ^ wave]);
        }
    }
    let failed = |error: png::EncodingError| {
        Error::internal("a picture could not be written").with_source(error)
    };
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(width: i32) -> InferRequest {
        InferRequest {
            inputs: vec![
                Tensor::from_elements("prompt", vec![1], ["a cat"]),
                Tensor::from_values("width", vec![1], [width]),
                Tensor::from_values("height", vec![1], [3]),
            ],
            ..InferRequest::default()
        }
    }

    #[tokio::test]
    async fn a_picture_has_the_size_that_was_asked_for() {
        let painter = MockImageModel::images();
        let call = |width| painter.call(request(width), Context::new("r"));
        let mut stream = call(5).await.unwrap();
        let output = stream.next().await.unwrap().unwrap();
        assert!(output.is_last && stream.next().await.is_none());
        let png = output.tensors[0].elements().unwrap().next().unwrap().unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        assert_eq!((reader.info().width, reader.info().height), (5, 3));
        let refused = call(0).await.err().unwrap();
        assert!(refused.message().contains("input 'width': expected 1 to 2048"), "{refused}");
    }

    #[tokio::test]
    async fn a_video_comes_frame_by_frame() {
        let stream = MockImageModel::videos().call(request(4), Context::new("r")).await.unwrap();
        let outputs: Vec<_> = stream.collect().await;
        assert_eq!(outputs.len(), 8);
        assert!(outputs.last().unwrap().as_ref().unwrap().is_last);
    }
}
