//! Keys and values as bytes.

use super::{BoxError, Result};

/// What a key or a value is written into.
#[derive(Debug)]
pub struct Encoder<'a>(pub(super) &'a mut Vec<u8>);

impl Encoder<'_> {
    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// What can be a key or a value: it has bytes.
///
/// Keys are ordered by their bytes, and those of numbers are such that this is the order of the numbers.
pub trait Encode {
    /// Appends its bytes.
    fn encode(&self, into: &mut Encoder<'_>);
}

/// What is made of the bytes of a key or a value again.
pub trait Decode: Sized {
    /// Makes it.
    ///
    /// # Errors
    /// The bytes are of something else.
    fn decode(bytes: &[u8]) -> Result<Self>;
}

/// What always has as many bytes, so that it is known where it ends.
pub trait Fixed: Encode + Decode {
    /// So many.
    const WIDTH: usize;
}

/// Makes a value of bytes: `let hour: u64 = decode(key)?`.
///
/// # Errors
/// The bytes are of something else.
pub fn decode<T: Decode>(bytes: &[u8]) -> Result<T> {
    T::decode(bytes)
}

fn mismatch(bytes: &[u8], what: &str) -> BoxError {
    format!("{} bytes are no {what}", bytes.len()).into()
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self, into: &mut Encoder<'_>) {
        (**self).encode(into);
    }
}

impl Encode for [u8] {
    fn encode(&self, into: &mut Encoder<'_>) {
        into.put(self);
    }
}

impl Encode for Vec<u8> {
    fn encode(&self, into: &mut Encoder<'_>) {
        into.put(self);
    }
}

impl Decode for Vec<u8> {
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(bytes.to_vec())
    }
}

impl Encode for str {
    fn encode(&self, into: &mut Encoder<'_>) {
        into.put(self.as_bytes());
    }
}

impl Encode for String {
    fn encode(&self, into: &mut Encoder<'_>) {
        into.put(self.as_bytes());
    }
}

impl Decode for String {
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(std::str::from_utf8(bytes)?.to_owned())
    }
}

impl Encode for () {
    fn encode(&self, _: &mut Encoder<'_>) {}
}

impl Decode for () {
    fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() { Ok(()) } else { Err(mismatch(bytes, "()")) }
    }
}

impl Fixed for () {
    const WIDTH: usize = 0;
}

/// Numbers: `$ordered` makes of one a number without a sign that is in the same order, and `$number` the way back.
macro_rules! numbers {
    ($($kind:ident as $bits:ident: $ordered:expr, $number:expr;)*) => {
        $(
            impl Encode for $kind {
                fn encode(&self, into: &mut Encoder<'_>) {
                    let ordered: fn($kind) -> $bits = $ordered;
                    into.put(&ordered(*self).to_be_bytes());
                }
            }

            impl Decode for $kind {
                fn decode(bytes: &[u8]) -> Result<Self> {
                    let number: fn($bits) -> $kind = $number;
                    let bytes = bytes.try_into().map_err(|_| mismatch(bytes, stringify!($kind)))?;
                    Ok(number($bits::from_be_bytes(bytes)))
                }
            }

            impl Fixed for $kind {
                const WIDTH: usize = size_of::<$bits>();
            }
        )*
    };
}

numbers! {
    u8 as u8: |number| number, |bits| bits;
    u16 as u16: |number| number, |bits| bits;
    u32 as u32: |number| number, |bits| bits;
    u64 as u64: |number| number, |bits| bits;
    i32 as u32: |number| number.cast_unsigned() ^ 1 << 31, |bits| (bits ^ 1 << 31).cast_signed();
    i64 as u64: |number| number.cast_unsigned() ^ 1 << 63, |bits| (bits ^ 1 << 63).cast_signed();
    f64 as u64:
        |number| if number.is_sign_negative() { !number.to_bits() } else { number.to_bits() | 1 << 63 },
        |bits| f64::from_bits(if bits >> 63 == 1 { bits ^ 1 << 63 } else { !bits });
    bool as u8: u8::from, |bits| bits != 0;
}

impl<A: Fixed, B: Encode> Encode for (A, B) {
    fn encode(&self, into: &mut Encoder<'_>) {
        self.0.encode(into);
        self.1.encode(into);
    }
}

impl<A: Fixed, B: Decode> Decode for (A, B) {
    fn decode(bytes: &[u8]) -> Result<Self> {
        let (a, b) = bytes.split_at_checked(A::WIDTH).ok_or_else(|| mismatch(bytes, "pair"))?;
        Ok((A::decode(a)?, B::decode(b)?))
    }
}

impl<A: Fixed, B: Fixed> Fixed for (A, B) {
    const WIDTH: usize = A::WIDTH + B::WIDTH;
}

impl<A: Fixed, B: Fixed, C: Encode> Encode for (A, B, C) {
    fn encode(&self, into: &mut Encoder<'_>) {
        self.0.encode(into);
        self.1.encode(into);
        self.2.encode(into);
    }
}

impl<A: Fixed, B: Fixed, C: Decode> Decode for (A, B, C) {
    fn decode(bytes: &[u8]) -> Result<Self> {
        let (a, (b, c)) = <(A, (B, C))>::decode(bytes)?;
        Ok((a, b, c))
    }
}

impl<A: Fixed, B: Fixed, C: Fixed> Fixed for (A, B, C) {
    const WIDTH: usize = A::WIDTH + B::WIDTH + C::WIDTH;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(value: impl Encode) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.encode(&mut Encoder(&mut bytes));
        bytes
    }

    #[test]
    fn bytes_of_something_else_are_told() {
        let error = |error: BoxError| error.to_string();
        assert_eq!(error(decode::<u64>(b"12345").unwrap_err()), "5 bytes are no u64");
        assert_eq!(error(decode::<(u32, String)>(b"123").unwrap_err()), "3 bytes are no pair");
        assert!(decode::<String>(b"\xff").is_err() && decode::<()>(b"x").is_err());
    }

    proptest! {
        #[test]
        fn values_come_back_and_numbers_keep_their_order(
            a in any::<(i64, f64, u32, bool, String)>(), b in any::<(i64, f64, u32, bool, String)>(),
        ) {
            prop_assert_eq!(bytes(a.0).cmp(&bytes(b.0)), a.0.cmp(&b.0));
            prop_assert_eq!(bytes(a.1).cmp(&bytes(b.1)), a.1.total_cmp(&b.1));
            prop_assert_eq!(bytes((a.2, a.0)).cmp(&bytes((b.2, b.0))), (a.2, a.0).cmp(&(b.2, b.0)));
            prop_assert_eq!(decode::<i64>(&bytes(a.0)).unwrap(), a.0);
            prop_assert_eq!(decode::<f64>(&bytes(a.1)).unwrap().to_bits(), a.1.to_bits());
            prop_assert_eq!(decode::<(u32, bool, String)>(&bytes((a.2, a.3, &a.4))).unwrap(), (a.2, a.3, a.4.clone()));
            prop_assert_eq!(decode::<i32>(&bytes(a.0 as i32)).unwrap(), a.0 as i32);
        }
    }
}
