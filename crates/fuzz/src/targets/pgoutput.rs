//! One message of the change stream, read under every protocol, in and out of a stream block.
//!
//! Promises: no bytes make the decoder panic; a row has as many cells as it says; what was read, written again and read
//! once more is the same.

use millrace_pgoutput::encode::encode;
use millrace_pgoutput::{Body, Context, Message, OldTuple, Tuple, decode};

/// The input is the message.
pub fn run(input: &[u8]) {
    for protocol in 0..=5 {
        for in_stream in [false, true] {
            let context = Context { protocol, in_stream };
            match decode(input, &context) {
                Ok(message) => check(&message, &context),
                Err(error) => {
                    assert!(error.offset <= input.len() && error.length == input.len(), "{error:?}");
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
}

fn check(message: &Message<'_>, context: &Context) {
    for tuple in tuples(&message.body).into_iter().flatten() {
        assert_eq!(tuple.cells().count(), tuple.len(), "cells of {tuple:?}");
        assert_eq!(tuple.cells().len(), tuple.len());
    }
    let written = encode(message);
    let read = decode(&written, context);
    assert_eq!(read.as_ref(), Ok(message), "read again under {context:?}");
}

fn tuples<'a>(body: &Body<'a>) -> [Option<Tuple<'a>>; 2] {
    let old = |old: &OldTuple<'a>| old.tuple();
    match body {
        Body::Insert(insert) => [None, Some(insert.new)],
        Body::Update(update) => [update.old.as_ref().map(old), Some(update.new)],
        Body::Delete(delete) => [Some(old(&delete.old)), None],
        _ => [None, None],
    }
}
