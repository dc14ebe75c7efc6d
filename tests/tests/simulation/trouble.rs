//! What can go wrong at an issuer, and what its replies are then.

use std::time::Duration;

use fastrand::Rng;
use tokend::oauth::{Failure, Refusal};
use tokend_protocol::ErrorClass;

/// A condition of an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its name cannot be resolved, or nobody listens.
    Unreachable,
    /// It accepts and says nothing.
    Hanging,
    /// It answers 500, or 503 with a wish.
    Failing(Option<Duration>),
    /// Its certificate has expired.
    BadCertificate,
    /// It answers 200 with an empty body, HTML, or JSON of another kind.
    Malformed,
    /// It answers 429 with a wish.
    Throttling(Duration),
    /// It answers `invalid_client`: its secret was changed, ours not yet.
    Refusing,
    /// A gateway before it answers 404 with a page.
    Page,
    /// Our own secret cannot be read.
    NoSecret,
    /// It gives tokens that have expired when they arrive.
    Stale,
}

impl Trouble {
    pub fn draw(rng: &mut Rng) -> Self {
        let wish = Duration::from_secs(match rng.u32(0..4) {
            0 => 0,
            1 => rng.u64(1..=120),
            2 => rng.u64(1..=3_600),
            _ => 1_000_000_000,
        });
        match rng.u32(0..11) {
            0 | 1 => Self::Unreachable,
            2 => Self::Hanging,
            3 => Self::Failing(None),
            4 => Self::Failing(Some(wish)),
            5 => Self::BadCertificate,
            6 => Self::Malformed,
            7 => Self::Throttling(wish),
            8 => Self::Refusing,
            9 => Self::Page,
            _ => [Self::NoSecret, Self::Stale][rng.usize(0..2)],
        }
    }

    /// A single failure in good times.
    pub fn mishap(rng: &mut Rng) -> Self {
        [Self::Unreachable, Self::Hanging, Self::Failing(None), Self::Malformed][rng.usize(0..4)]
    }

    /// How long a request takes until it fails.
    pub fn latency(self, rng: &mut Rng) -> Duration {
        match self {
            Self::Hanging => Duration::from_secs(10),
            Self::NoSecret => Duration::ZERO,
            _ => Duration::from_millis(rng.u64(0..500)),
        }
    }

    pub fn failure(self) -> Option<Failure> {
        let class = match self {
            Self::Unreachable => ErrorClass::Unreachable,
            Self::Hanging => ErrorClass::Timeout,
            Self::Failing(_) => ErrorClass::Server,
            Self::BadCertificate => ErrorClass::Tls,
            Self::Malformed => ErrorClass::Malformed,
            Self::Throttling(_) => ErrorClass::Throttled,
            Self::Refusing | Self::Page => ErrorClass::Refused,
            Self::NoSecret => ErrorClass::Secret,
            Self::Stale => return None,
        };
        let retry_after = match self {
            Self::Failing(wish) => wish,
            Self::Throttling(wish) => Some(wish),
            _ => None,
        };
        let refusal = match self {
            Self::Refusing => Some(Refusal::Client),
            Self::Page => Some(Refusal::WithoutCode(404)),
            _ => None,
        };
        Some(Failure { retry_after, refusal, ..Failure::new(class, "simulated") })
    }

    /// Whether it is the kind by which an issuer is taken to be down.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Unreachable | Self::Hanging | Self::Failing(None) | Self::BadCertificate)
    }

    /// Whether it may be meant for one client of the issuer.
    pub fn is_throttling(self) -> bool {
        matches!(self, Self::Failing(Some(_)) | Self::Throttling(_))
    }

    /// How soon after its end a caller gets a token again, if nothing else goes wrong: half a minute and a fifth, the ten
    /// seconds that the last request may hang, and the queue. `None` where that depends on what the issuer asked for, or
    /// on whether it is a matter for an operator.
    pub fn recovery_of_callers(self, crowd: usize, latency: Duration) -> Option<Duration> {
        let passes = self.is_outage() || matches!(self, Self::Malformed | Self::Stale);
        passes.then(|| Duration::from_secs(36 + 10 + 1) + queue(crowd, latency))
    }

    /// How soon after its end all tokens of the issuer have to be renewed again, if nothing else goes wrong, with
    /// `crowd` of them waiting for four places and for their turn, twenty in a second.
    ///
    /// A token's own back-off is at most five minutes and a fifth, after a refusal fifteen and a fifth. The issuer's
    /// is two and a fifth, and may begin with the last failure of a token's. Then there is one request that finds
    /// out (ten seconds if the last of them hangs), a spread of five, and the queue.
    pub fn recovery(self, crowd: usize, latency: Duration) -> Duration {
        let own = Duration::from_secs(match self {
            Self::Refusing | Self::Page => 1_080,
            Self::Failing(Some(_)) | Self::Throttling(_) => 900,
            _ => 360,
        });
        own + Duration::from_secs(144 + 30) + queue(crowd, latency)
    }
}

/// How long it takes until all of a crowd have had their turn.
fn queue(crowd: usize, latency: Duration) -> Duration {
    (latency / 4).max(Duration::from_millis(50)).mul_f64(crowd as f64)
}
