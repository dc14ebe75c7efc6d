//! The traffic to one host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::{HeldBack, Urgency, YIELD};
use crate::clock::{Clock, Instant};

/// Requests in flight to one host. Enough for a start with many tokens to be quick, few enough that no provider
/// takes it for an attack.
const IN_FLIGHT_MAX: usize = 4;

/// The least time between two requests to one host, unless it is configured: twenty in a second are no attack on
/// anybody, and a thousand tokens are through in a minute.
const SPACING: Duration = Duration::from_millis(50);

/// How long it is remembered that a client was asked for quiet, after that has ended.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// The throttle of one host.
#[derive(Debug)]
pub struct OriginThrottle {
    /// Never locked across an await.
    traffic: Mutex<Traffic>,
    /// Wakes the first request of each line, and callers that wait for a probe.
    changed: Notify,
    /// The line of requests that somebody waits for. It has one permit: its holder is next.
    callers: Semaphore,
    /// The line of scheduled requests. Its first waits until the line of callers is empty.
    scheduled: Semaphore,
}

#[derive(Debug, Default)]
struct Traffic {
    in_flight: usize,
    /// The least time between two requests, where it is configured.
    spacing: Option<Duration>,
    /// When the next request may be sent, as far as the spacing goes.
    next_slot: Option<Instant>,
    /// By client.
    quiet: HashMap<Arc<str>, Quiet>,
}

/// The quiet that a `Retry-After` asks of one client.
#[derive(Debug)]
struct Quiet {
    until: Instant,
    /// Whether another client was asked for it at the same time, so that it is the host's.
    is_shared: bool,
    /// Whether another client was given a token since this one was asked for the first time, so that it is not the
    /// host's. This holds until this client is given a token itself.
    is_own: bool,
}

impl Default for OriginThrottle {
    fn default() -> Self {
        let [callers, scheduled] = [1, 1].map(Semaphore::new);
        Self { traffic: Mutex::default(), changed: Notify::new(), callers, scheduled }
    }
}

impl OriginThrottle {
    /// Allows no more requests in a minute than this; `None` for the usual number.
    pub fn limit(&self, per_minute: Option<u32>) {
        self.lock().spacing = per_minute.map(|number| Duration::from_secs(60) / number.max(1));
        self.changed.notify_waiters();
    }

    /// The delay of a token's first request after a start with `tokens` of this host. `roll` is in `0..1`. A few
    /// tokens go out at once. Ten thousand are spread over eight minutes, or as the configured limit demands: a line of
    /// that length would hold up renewals that fall due meanwhile.
    pub fn start_delay(&self, tokens: usize, roll: f64) -> Duration {
        let waiting = u32::try_from(tokens.saturating_sub(IN_FLIGHT_MAX)).unwrap_or(u32::MAX);
        self.lock().spacing().saturating_mul(waiting).mul_f64(roll)
    }

    /// Sends nothing of a client before `until`. Returns whether that is longer than before.
    pub(super) fn keep_quiet(&self, client: &Arc<str>, until: Instant, now: Instant) -> bool {
        let mut traffic = self.lock();
        traffic.quiet.retain(|_, quiet| quiet.until.after(REMEMBERED) > now);
        let known = traffic.quiet.get(client);
        if until <= now || known.is_some_and(|quiet| quiet.until >= until) {
            return false;
        }
        let is_own = known.is_some_and(|quiet| quiet.is_own);
        traffic.quiet.insert(Arc::clone(client), Quiet { until, is_shared: false, is_own });
        let is_asked = |quiet: &&mut Quiet| !quiet.is_own && quiet.until > now;
        let mut asked: Vec<_> = traffic.quiet.values_mut().filter(is_asked).collect();
        let is_shared = asked.len() > 1;
        for quiet in &mut asked {
            quiet.is_shared |= is_shared;
        }
        drop(traffic);
        self.changed.notify_waiters();
        true
    }

    /// Until when a client may send nothing, if that is still to come. A `Retry-After` of several other clients counts
    /// too, except for an operator.
    pub(super) fn quiet_until(&self, client: &str, urgency: Urgency, now: Instant) -> Option<Instant> {
        let traffic = self.lock();
        let own = traffic.quiet.get(client).map(Quiet::own_end);
        let hosts = traffic.hosts_quiet_until().filter(|_| urgency != Urgency::Ordered);
        own.max(hosts).filter(|until| *until > now)
    }

    /// Notes that a client was given a token: what other clients were asked for is not the host's.
    pub(super) fn granted(&self, client: &str) {
        let mut traffic = self.lock();
        traffic.quiet.remove(client);
        for quiet in traffic.quiet.values_mut() {
            quiet.is_own = true;
        }
    }

    /// Completes when a request has ended, or something else has changed that a waiting request may have to wait for.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The line for requests of this urgency. The holder of its permit is the first.
    pub(super) fn line(&self, urgency: Urgency) -> &Semaphore {
        if urgency == Urgency::Scheduled { &self.scheduled } else { &self.callers }
    }

    /// Waits for a slot as the first in line, callers first, for as long as `check` allows it.
    pub(super) async fn slot(
        &self,
        _first_in_line: Option<SemaphorePermit<'_>>,
        urgency: Urgency,
        clock: &Clock,
        check: impl Fn(Instant) -> Result<(), HeldBack>,
    ) -> Result<(), HeldBack> {
        let is_scheduled = urgency == Urgency::Scheduled;
        loop {
            // Every caller in line has the permit of that line, or waits for it.
            while is_scheduled && self.callers.try_acquire().is_err() {
                drop(self.callers.acquire().await);
            }
            let changed = self.changed.notified();
            let now = clock.now();
            check(now)?;
            let taken = self.lock().take(now);
            match taken {
                Ok(()) => return Ok(()),
                Err(None) => changed.await,
                Err(Some(slot)) => tokio::select! {
                    () = clock.sleep_until(slot) => (),
                    () = changed => (),
                },
            }
        }
    }

    /// Counts the further requests that one admission sent, and delays the next requests accordingly.
    pub fn also_sent(&self, requests: u32, now: Instant) {
        if requests > 0 {
            let mut traffic = self.lock();
            let from = traffic.next_slot.map_or(now, |slot| slot.max(now));
            traffic.next_slot = Some(from.after(traffic.spacing() * requests));
        }
    }

    /// Gives a slot back.
    pub(super) fn ended(&self) {
        self.lock().in_flight -= 1;
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quiet {
    fn own_end(&self) -> Instant {
        if self.is_shared { self.until.after(YIELD) } else { self.until }
    }
}

impl Traffic {
    fn spacing(&self) -> Duration {
        self.spacing.unwrap_or(SPACING)
    }

    /// When fewer than two clients remain that the host has asked for quiet.
    fn hosts_quiet_until(&self) -> Option<Instant> {
        let mut ends: Vec<_> =
            self.quiet.values().filter(|quiet| !quiet.is_own).map(|quiet| quiet.until).collect();
        ends.sort_unstable();
        ends.len().checked_sub(2).and_then(|second_last| ends.get(second_last)).copied()
    }

    /// Takes a slot for a request. Otherwise returns when to try again, or `None` to wait for a change.
    fn take(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        if self.in_flight >= IN_FLIGHT_MAX {
            return Err(None);
        }
        if let Some(slot) = self.next_slot.filter(|slot| *slot > now) {
            return Err(Some(slot));
        }
        self.in_flight += 1;
        self.next_slot = Some(now.after(self.spacing()));
        Ok(())
    }
}
