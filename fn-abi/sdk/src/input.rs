//! What a function can take: from the bytes that a caller sent to the type of its parameter.

use crate::call::Call;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bad_input};
use crate::layout::StateType;
use crate::reply::{Json, layout_parameter};
use denizen_abi::{DzSlice, Payload};
use rkyv::rancor;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::{self, Read};
use std::ops::Deref;

/// A type that a function takes as its input.
#[diagnostic::on_unimplemented(
    message = "a function cannot take `{Self}` as its input",
    label = "not an input",
    note = "inputs are `&[u8]`, `Vec<u8>`, `&str`, `String`, `Json<T>`, `&Archived<T>` and `Stream`",
    note = "for JSON write `Json(name): Json<{Self}>`",
    note = "a type of your own can implement `denizen::FromInput`"
)]
pub trait FromInput<'call>: Sized {
    /// What the function declares to take.
    const PAYLOAD: Payload;

    /// The layout text of an archived input; empty for any other.
    #[must_use]
    fn layout() -> String {
        String::new()
    }

    /// Makes the value; [`Context::input`] with another type gives what it is made from.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if the caller sent something else; what [`Context::input`] says.
    fn from_input(cx: &Context<'call>) -> Result<Self>;
}

impl<'call> FromInput<'call> for &'call [u8] {
    const PAYLOAD: Payload = Payload::Bytes;

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        let call = cx.call();
        let mut bytes = DzSlice::EMPTY;
        // SAFETY: `raw` is alive and `bytes` is writable.
        let status = unsafe { (call.host.input)(call.raw, &raw mut bytes) };
        call.check(status, || "reading the input".to_owned())?;
        // SAFETY: the host promises the input until the entry returns.
        Ok(unsafe { bytes.as_bytes::<'call>() })
    }
}

impl<'call> FromInput<'call> for Vec<u8> {
    const PAYLOAD: Payload = Payload::Bytes;

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        Ok(cx.input::<&[u8]>()?.to_vec())
    }
}

impl<'call> FromInput<'call> for &'call str {
    const PAYLOAD: Payload = Payload::Bytes;

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        std::str::from_utf8(cx.input::<&[u8]>()?)
            .map_err(|error| bad_input(format_args!("the input is not UTF-8 text: {error}")))
    }
}

impl<'call> FromInput<'call> for String {
    const PAYLOAD: Payload = Payload::Bytes;

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        Ok(cx.input::<&str>()?.to_owned())
    }
}

impl<'call, T: DeserializeOwned> FromInput<'call> for Json<T> {
    const PAYLOAD: Payload = Payload::Json;

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        let bytes = cx.input::<&[u8]>()?;
        if bytes.is_empty() {
            return Err(bad_input(format_args!("{} takes JSON, and the input is empty", cx.function())));
        }
        serde_json::from_slice(bytes).map(Json).map_err(|error| {
            bad_input(format_args!("the input is not the JSON that {} takes: {error}", cx.function()))
        })
    }
}

/// An archive read in place: the input `&Archived<T>` is the bytes that the caller sent, checked once and
/// never copied. A [migration](macro@crate::migrate) can take an old record so. It is the archived form of `T`
/// (for a `struct Query` that is `ArchivedQuery`) by `Deref`.
#[derive(Debug)]
#[repr(transparent)]
pub struct Archived<T: StateType>(T::Archived);

impl<T: StateType> Archived<T> {
    pub(crate) fn wrap(archived: &T::Archived) -> &Archived<T> {
        let this = std::ptr::from_ref(archived).cast::<Archived<T>>();
        // SAFETY: `Archived<T>` is a transparent wrapper of `T::Archived`, so a reference to one is a
        // reference to the other.
        unsafe { &*this }
    }
}

impl<T: StateType> Deref for Archived<T> {
    type Target = T::Archived;

    fn deref(&self) -> &T::Archived {
        &self.0
    }
}

impl<'call, T: StateType> FromInput<'call> for &'call Archived<T> {
    const PAYLOAD: Payload = Payload::Archived;

    fn layout() -> String {
        T::layout()
    }

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        let sent = layout_parameter(cx.content_type());
        if sent.is_some_and(|sent| sent != T::fingerprint()) {
            let layout = T::layout();
            return Err(bad_input(format_args!("the input is an archive of another layout than `{layout}`")));
        }
        let archived: &'call T::Archived =
            // What rkyv says is about addresses in here, which tell a caller nothing and are none of its business.
            rkyv::access::<_, rancor::Error>(cx.input::<&[u8]>()?)
                .map_err(|_| bad_input(format_args!("the input is no archive of `{}`", T::layout())))?;
        Ok(Archived::wrap(archived))
    }
}

/// The input piece by piece, for a function that begins before all of it is there, or that never needs it
/// whole.
///
/// Reading fails when the caller breaks off; passed on with `?`, the error keeps its meaning. Reads go to the
/// host one by one: wrap it in a [`BufReader`](io::BufReader) for small ones.
pub struct Stream<'call> {
    call: &'call Call,
}

impl<'call> FromInput<'call> for Stream<'call> {
    const PAYLOAD: Payload = Payload::Stream;

    fn from_input(cx: &Context<'call>) -> Result<Self> {
        Ok(Stream { call: cx.call() })
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut len = 0;
        let (start, capacity) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: `raw` is alive, the buffer has `capacity` bytes, and `len` is writable.
        let status = unsafe { (self.call.host.input_read)(self.call.raw, start, capacity, &raw mut len) };
        self.call.check(status, || "reading the input".to_owned())?;
        if len > capacity {
            return Err(
                Error::new(ErrorKind::Internal, "the node gave more input than there was room for").into()
            );
        }
        Ok(len)
    }
}

impl fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}
