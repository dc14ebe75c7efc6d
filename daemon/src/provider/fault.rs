//! What an HTTP client's error means. Its own text is never passed on: it would carry the whole URL.

use std::error::Error;
use std::io;

use tokend_protocol::ErrorClass;

use crate::provider::Failure;

/// Sorts an error of a request that did not bring a whole reply.
pub fn classify(error: &reqwest::Error) -> Failure {
    if let Some(fault) = cause::<rustls::Error>(error) {
        return Failure::new(ErrorClass::Tls, format!("TLS: {fault}"));
    }
    if error.is_timeout() {
        let stage = if error.is_connect() { "no connection" } else { "no complete reply" };
        return Failure::new(ErrorClass::Timeout, format!("{stage} in time"));
    }
    if chain(error).any(|cause| cause.to_string() == "dns error") {
        return Failure::new(ErrorClass::Unreachable, "network: the provider's name cannot be resolved");
    }
    if let Some(fault) = cause::<io::Error>(error) {
        return Failure::new(ErrorClass::Unreachable, format!("network: {}", fault.kind()));
    }
    if error.is_decode() {
        return Failure::new(ErrorClass::Malformed, "a reply that breaks off or cannot be decoded");
    }
    if error.is_connect() {
        return Failure::new(ErrorClass::Unreachable, "no connection to the provider");
    }
    Failure::new(ErrorClass::Unreachable, "the exchange with the provider broke off")
}

/// The innermost error of a type among an error and its causes.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).filter_map(|error| error.downcast_ref::<E>()).last()
}

/// An error and its causes, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An io::Error that wraps another error does not name it as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_found_within_an_io_error() {
        let inner = rustls::Error::DecryptError;
        let outer = io::Error::other(io::Error::other(inner.clone()));
        assert_eq!(cause::<rustls::Error>(&outer), Some(&inner));
    }
}
