//! Those who ask for tokens, complain of them, and renew them by hand.

use std::sync::Arc;
use std::time::Duration;

use tokend::clock::Instant;
use tokend::engine::credential::{Credential, Unobtainable};
use tokend_protocol::Fingerprint;

use crate::world::World;

/// What a caller does.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Obtain { min_ttl: Duration },
    Reject { fingerprint: Fingerprint },
    Refresh,
}

/// One call, or a crowd of them at once. None is waited for.
pub fn call(world: &Arc<World>, key: usize, credential: &Arc<Credential>, lifetime: Duration) {
    let (wish, crowd, patience) = world.draw(|rng| {
        let wish = match rng.u32(0..100) {
            0 | 1 => Wish::Refresh,
            2..=5 => {
                Wish::Reject { fingerprint: current(credential).unwrap_or(Fingerprint([rng.u8(..); 8])) }
            }
            6..=17 => Wish::Obtain { min_ttl: lifetime.mul_f64(rng.f64() * 1.2) },
            _ => Wish::Obtain { min_ttl: Duration::ZERO },
        };
        let crowd = if rng.u32(0..50) == 0 { rng.usize(2..100) } else { 1 };
        (wish, crowd, Duration::from_secs(rng.u64(0..30)))
    });
    for _ in 0..crowd {
        let (world, credential) = (Arc::clone(world), Arc::clone(credential));
        tokio::spawn(async move {
            let deadline = world.clock.now().after(patience);
            match wish {
                Wish::Obtain { min_ttl } => obtain(&world, key, &credential, min_ttl, deadline).await,
                Wish::Reject { fingerprint } => {
                    order(&world, key, credential.reject(fingerprint, deadline)).await;
                }
                Wish::Refresh => order(&world, key, credential.refresh(deadline)).await,
            }
            world.judge(|judge| judge.note(key, "called"));
        });
    }
}

fn current(credential: &Credential) -> Option<Fingerprint> {
    credential.snapshot().token.as_ref().map(|token| token.fingerprint)
}

/// Waits for what an order brings. It is carried out even if nobody waits any more.
async fn order<T>(world: &World, key: usize, ordered: impl Future<Output = Result<T, Unobtainable>>) {
    world.judge(|judge| judge.keys[key].orders += 1);
    let answer = ordered.await;
    world.judge(|judge| {
        judge.keys[key].orders -= 1;
        judge.keys[key].is_abandoned |= matches!(answer, Err(Unobtainable::DeadlineExceeded));
    });
}

/// Asks for a token, and holds the answer against what was to be had.
async fn obtain(world: &World, key: usize, credential: &Credential, min_ttl: Duration, deadline: Instant) {
    let clock = &world.clock;
    let from = clock.now();
    let was_usable = credential.snapshot().usable(from, min_ttl).is_some();
    let resumed = world.judge(|judge| {
        judge.tally.calls += 1;
        judge.keys[key].needs += u32::from(!was_usable);
        judge.resumed.0
    });
    let answer = credential.obtain(min_ttl, deadline).await;
    let until = clock.now();
    let is_usable = credential.snapshot().usable(until, min_ttl).is_some();
    world.judge(|judge| {
        judge.keys[key].needs -= u32::from(!was_usable);
        judge.keys[key].is_abandoned |= matches!(answer, Err(Unobtainable::DeadlineExceeded)) && until > from;
        judge.tally.served += u64::from(answer.is_ok());
        judge.tally.waited += u64::from(until > from);
        if let Ok(token) = &answer {
            judge.check(key, token.secret.expose());
        }
        let was_awake = judge.resumed.0 == resumed;
        let wrong = match &answer {
            Ok(token) if !token.validity.is_usable(until, min_ttl) => {
                "a token that does not last as long as asked"
            }
            _ if was_usable && (answer.is_err() || until > from) => {
                "a caller waited with a usable token there"
            }
            Err(_) if is_usable => "a caller was sent away with a usable token there",
            _ if was_awake && judge.was_there(key, min_ttl, from, until) => {
                "a caller waited after its token came"
            }
            _ if was_awake && until > deadline.after(Duration::from_millis(3)) => {
                "a caller waited past its deadline"
            }
            Err(Unobtainable::DeadlineExceeded) if until < deadline => "a deadline before its time",
            Err(Unobtainable::Failed(failed, Some(announced))) => {
                match judge.sent_away(key, failed, *announced, was_awake) {
                    Some(wrong) => wrong,
                    None => return,
                }
            }
            _ => return,
        };
        judge.violated(&format!(
            "token {key}: {wrong}: {answer:?}, asked {min_ttl:?} at {from:?} until {deadline:?}"
        ));
    });
}
