//! A named tensor: datatype, shape and shared bytes, with typed views.

use std::borrow::Cow;

use half::{bf16, f16};
use proto::Payload;

use crate::{Datatype, Elements, Parameters, encode_elements};

/// A named tensor.
///
/// `data` is little-endian, row-major and unpadded; BYTES elements are a `u32` length and the
/// bytes. A tensor that came through [`ModelConfig::validate`](crate::ModelConfig::validate) has
/// as many elements as its shape says.
///
/// ```
/// use tensor::Tensor;
/// let tensor = Tensor::from_values("INPUT0", vec![3], [1i32, 2, 3]);
/// assert_eq!(tensor.values::<i32>().unwrap().sum::<i32>(), 6);
/// assert!(tensor.values::<f32>().is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The name of the input or output.
    pub name: Cow<'static, str>,
    /// The type of the elements.
    pub datatype: Datatype,
    /// The dimensions, outermost first.
    pub shape: Vec<i64>,
    /// The elements.
    pub data: Payload,
    /// What is said about the tensor, such as the shared memory region that holds its data.
    pub parameters: Parameters,
}

impl Tensor {
    /// Makes a tensor of encoded elements.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        datatype: Datatype,
        shape: Vec<i64>,
        data: impl Into<Payload>,
    ) -> Self {
        let (name, data) = (name.into(), data.into());
        Self { name, datatype, shape, data, parameters: Parameters::new() }
    }

    /// Makes a tensor of numbers.
    pub fn from_values<T: Element>(
        name: impl Into<Cow<'static, str>>,
        shape: Vec<i64>,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let mut data = Vec::new();
        values.into_iter().for_each(|value| value.append_to(&mut data));
        Self::new(name, T::DATATYPE, shape, data)
    }

    /// Makes a BYTES tensor.
    pub fn from_elements<E: AsRef<[u8]>>(
        name: impl Into<Cow<'static, str>>,
        shape: Vec<i64>,
        elements: impl IntoIterator<Item = E>,
    ) -> Self {
        Self::new(name, Datatype::Bytes, shape, encode_elements(elements))
    }

    /// Returns the numbers, or none if they are of another datatype.
    pub fn values<T: Element>(&self) -> Option<impl Iterator<Item = T>> {
        let size = size_of::<T>();
        (self.datatype == T::DATATYPE).then(|| {
            let data = self.data.to_bytes();
            (0..data.len() / size).map(move |index| T::read(&data[index * size..][..size]))
        })
    }

    /// Returns the BYTES elements, or none if the datatype is another.
    pub fn elements(&self) -> Option<Elements> {
        (self.datatype == Datatype::Bytes).then(|| Elements::new(self.data.to_bytes()))
    }
}

/// A Rust type that is the element of a datatype.
pub trait Element: Copy + private::Sealed {
    /// The datatype.
    const DATATYPE: Datatype;

    /// Reads one element from exactly its bytes.
    fn read(bytes: &[u8]) -> Self;

    /// Writes one element.
    fn append_to(self, data: &mut Vec<u8>);
}

mod private {
    pub trait Sealed {}
}

macro_rules! element {
    ($($type:ty => $datatype:ident),* $(,)?) => {$(
        impl private::Sealed for $type {}

        impl Element for $type {
            const DATATYPE: Datatype = Datatype::$datatype;

            fn read(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<Self>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }

            fn append_to(self, data: &mut Vec<u8>) {
                data.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

element!(
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    f16 => Fp16, bf16 => Bf16, f32 => Fp32, f64 => Fp64,
);

impl private::Sealed for bool {}

impl Element for bool {
    const DATATYPE: Datatype = Datatype::Bool;

    fn read(bytes: &[u8]) -> Self {
        bytes.iter().any(|&byte| byte != 0)
    }

    fn append_to(self, data: &mut Vec<u8>) {
        data.push(u8::from(self));
    }
}
