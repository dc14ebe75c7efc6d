//! The judge: told of every event, it holds the engine to its promises.
//!
//! It knows from the simulated issuers what is true, sees of the engine only what its readers see, and has its
//! own idea of how far apart requests have to be.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokend::clock::{Clock, Instant};
use tokend::engine::credential::Failed;
use tokend::engine::schedule::RenewalMode;
use tokend::oauth::Failure;
use tokend_protocol::ErrorClass;

use crate::key::{Grant, Key, Kind, gap};
use crate::tally::Tally;
use crate::trouble::Trouble;

/// How many events are told of with a violation.
const TRACE: usize = 40;

/// tokio's timers count in milliseconds.
const TICK: Duration = Duration::from_millis(3);

/// The least time between two requests to an issuer.
const SPACING: Duration = Duration::from_millis(50);

/// The longest that a schedule may lie in the future when no token is held.
const LONGEST_WAIT: Duration = Duration::from_secs(1_080);

/// The longest that a suspend shortly before matters to callers.
const TROUBLED_MOST: Duration = Duration::from_secs(120);

/// All that the judge knows.
#[derive(Debug)]
pub struct Judge {
    clock: Clock,
    pub keys: Vec<Key>,
    pub sites: Vec<Site>,
    pub violation: Option<String>,
    pub tally: Tally,
    trace: VecDeque<(Instant, usize, &'static str)>,
    digest: DefaultHasher,
    /// How often the host has resumed, and when it last did.
    pub resumed: (u64, Instant),
}

/// An issuer, as the judge sees it.
#[derive(Debug, Default)]
pub struct Site {
    pub trouble: Option<(Trouble, Instant)>,
    /// Which client the trouble is meant for, if not for all.
    pub troubled_client: Option<usize>,
    /// When every caller gets a token again, after a trouble.
    pub callers_recovered: Option<Instant>,
    /// Whether nothing else is to go wrong for a while.
    pub is_recovering: bool,
    pub in_flight: u32,
    /// How often its secret on the host was replaced.
    pub replacements: u64,
    /// By client: until when it was asked for quiet, and whether that may be meant for the whole host, because no other
    /// client was given a token since.
    quiet: BTreeMap<usize, (Instant, bool)>,
    last_sent: Option<Instant>,
    last_failed: Option<Instant>,
    /// Requests of the schedule since the trouble began.
    scheduled: u32,
}

impl Site {
    fn asked_for_quiet(&self, client: usize, now: Instant) -> bool {
        self.quiet.get(&client).is_some_and(|(until, _)| now < *until)
    }

    /// Whether it asked for quiet that is over by a few seconds at most: others go first then.
    fn was_asked_for_quiet(&self, client: usize, now: Instant) -> bool {
        self.asked_for_quiet(client, now.before(Duration::from_secs(7)))
    }

    /// Whether it has asked several clients for quiet, and given no other one a token since.
    fn asks_all_for_quiet(&self, now: Instant) -> bool {
        self.quiet.values().filter(|(until, may_be_all)| now < *until && *may_be_all).count() > 1
    }
}

impl Judge {
    pub fn new(clock: Clock, keys: Vec<Key>, sites: usize) -> Self {
        let resumed = (0, clock.now());
        Self {
            clock,
            keys,
            sites: (0..sites).map(|_| Site::default()).collect(),
            violation: None,
            tally: Tally::default(),
            trace: VecDeque::new(),
            digest: DefaultHasher::new(),
            resumed,
        }
    }

    /// All events so far in one number.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// Notes an event, and looks at the token that it concerns.
    pub fn note(&mut self, key: usize, what: &'static str) {
        self.tally.events += 1;
        let now = self.clock.now();
        (now, key, what).hash(&mut self.digest);
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back((now, key, what));
        self.look_at(key);
    }

    /// Looks at all tokens.
    pub fn look_at_all(&mut self) {
        for key in 0..self.keys.len() {
            self.look_at(key);
        }
    }

    /// No expired token is shown as usable, no valid one is lost, and the schedule never ends.
    fn look_at(&mut self, number: usize) {
        let now = self.clock.now();
        let key = &self.keys[number];
        let Some(snapshot) = key.seen.as_ref().map(|seen| seen.borrow().clone()) else { return };
        let shown = snapshot.usable(now, Duration::ZERO);
        let truth = key.grants.back();
        let valid = truth.filter(|grant| grant.expires() > now);
        match (shown, valid) {
            (None, Some(grant)) => {
                let lost = format!("token {number}: valid token {} was lost: {snapshot:?}", grant.number);
                return self.violated(&lost);
            }
            (Some(token), _) => {
                if let Err(wrong) = key.check(number, token.secret.expose(), now) {
                    return self.violated(&wrong);
                }
            }
            _ => (),
        }
        let latest = valid.map_or(now, Grant::expires).max(now.after(LONGEST_WAIT));
        let rests = snapshot.next_attempt.is_none() && key.plan.renewal_mode != RenewalMode::Always;
        let is_due_in_time = snapshot.next_attempt.is_some_and(|due| due <= latest.after(TICK));
        if !snapshot.in_flight && !is_due_in_time && !rests {
            self.violated(&format!("token {number}: the schedule has ended: {snapshot:?}"));
        }
    }

    /// A request goes out.
    pub fn sent(&mut self, number: usize, costs: bool) {
        let now = self.clock.now();
        self.note(number, "sent");
        let key = &mut self.keys[number];
        let site = &mut self.sites[key.site];
        let mut wrong = None;
        if key.in_flight {
            wrong = Some("a second request is in flight");
        }
        if site.in_flight >= 4 {
            wrong = Some("a fifth request is in flight at one issuer");
        }
        if costs && site.asked_for_quiet(key.plan.client, now) {
            wrong = Some("a request although the issuer asked for quiet");
        }
        if costs && key.orders == 0 && !key.is_abandoned && site.asks_all_for_quiet(now) {
            wrong = Some("a request although the issuer asked several clients for quiet");
        }
        if !key.asks_again && site.last_sent.is_some_and(|last| now.after(TICK) < last.after(SPACING)) {
            wrong = Some("two requests in quick succession at one issuer");
        }
        let is_ordered = key.orders > 0 || std::mem::take(&mut key.is_abandoned);
        let is_wished = is_ordered || key.needs > 0;
        if let Some((by_schedule, by_need)) = key.next {
            let too_soon = now.after(TICK) < by_schedule;
            let needed = key.needs > 0 && now.after(TICK) >= by_need;
            if too_soon && !needed && !is_ordered {
                wrong = Some("a request before its time");
            }
            let failed_before = key.grants.back().is_none_or(|grant| key.last_sent != Some(grant.sent_at));
            match (too_soon || failed_before && is_wished, failed_before) {
                (true, _) => self.tally.wished += 1,
                (false, true) => self.tally.retries += 1,
                (false, false) if key.is_plain() => self.tally.plain.0 += 1,
                (false, false) => (),
            }
        }
        if !is_wished {
            site.scheduled += 1;
        }
        site.in_flight += 1;
        // A request that follows one that came too early shares its place in the line.
        if !key.asks_again {
            site.last_sent = Some(now);
        }
        key.in_flight = true;
        key.last_sent = Some(now);
        self.tally.sent += u64::from(costs);
        if let Some(wrong) = wrong {
            self.violated(&format!("token {number}: {wrong}: {:?}", self.keys[number]));
        }
    }

    /// A token was given.
    pub fn granted(&mut self, number: usize, mut grant: Grant) {
        let key = &mut self.keys[number];
        key.in_flight = false;
        self.sites[key.site].in_flight -= 1;
        if grant.expires() <= self.clock.now() {
            // An issuer that gives a new token only once the old one has expired is asked again a second later.
            if key.plan.refresh_before == Some(Duration::ZERO)
                && !std::mem::replace(&mut key.asks_again, true)
            {
                let again = self.clock.now().after(Duration::from_secs(1));
                key.next = Some((again, again));
                return self.note_reply(number, "expired");
            }
            return self.failed(number, &Failure::new(ErrorClass::Malformed, "expired on its way"), false);
        }
        key.asks_again = false;
        (key.streak, key.page_since) = (None, None);
        let quiet = &mut self.sites[key.site].quiet;
        quiet.remove(&key.plan.client);
        for (_, may_be_all) in quiet.values_mut() {
            *may_be_all = false;
        }
        let previous = key.grants.back();
        if let Some(same) = previous.filter(|previous| previous.number == grant.number) {
            grant.longest = grant.longest.max(same.longest);
        }
        if let Some(previous) = previous {
            let gap = grant.sent_at.since(previous.sent_at).as_secs_f64();
            let least = (gap / previous.lifetime.as_secs_f64()).min(1.0);
            self.tally.least += least;
            if key.is_plain() {
                self.tally.plain.1 += least;
            }
        } else {
            self.tally.least += 1.0;
        }
        key.next = Some((
            grant.sent_at.after(key.earliest_renewal(&grant)),
            grant.sent_at.after(gap(grant.lifetime)),
        ));
        key.grants.push_back(grant);
        if key.grants.len() > 8 {
            key.grants.pop_front();
        }
        self.note_reply(number, "granted");
    }

    /// A request failed.
    pub fn failed(&mut self, number: usize, failure: &Failure, was_in_flight: bool) {
        let now = self.clock.now();
        let key = &mut self.keys[number];
        key.asks_again = false;
        if was_in_flight {
            key.in_flight = false;
            self.sites[key.site].in_flight -= 1;
        }
        self.tally.failed += 1;
        let snapshot = key.seen.as_ref().map(|seen| seen.borrow().clone());
        let failures = snapshot.as_ref().map_or(0, |snapshot| snapshot.failures);
        let rest = snapshot
            .and_then(|snapshot| snapshot.usable(now, Duration::ZERO))
            .map(|token| token.validity.remaining(now));
        let (kind, count) = key.count(failure, failures, now);
        let (first, most) = match kind {
            Kind::Refusal => (60.0, rest.map_or(300.0, |_| 900.0)),
            Kind::Secret => (1.0, 60.0),
            Kind::Passing => (1.0, rest.map_or(30.0, |rest| (rest.as_secs_f64() / 4.0).clamp(1.0, 300.0))),
        };
        let own =
            now.after(Duration::from_secs_f64((first * 2.0_f64.powi((count - 1).min(20) as i32)).min(most)));
        let last_chance = rest.and_then(|_| key.last_chance(now));
        let asked = failure.retry_after.unwrap_or_default().min(Duration::from_secs(900));
        let next = last_chance.map_or(own, |at| at.min(own)).max(now.after(asked));
        let by_need =
            if failure.class == ErrorClass::Secret { now.after(Duration::from_secs(1)) } else { next };
        key.next = Some((next, by_need.min(next)));
        self.sites[key.site].last_failed = Some(now);
        let quiet = &mut self.sites[key.site].quiet;
        let before = quiet.get(&key.plan.client).map(|(until, _)| *until);
        if !asked.is_zero() && before.is_none_or(|before| before < now.after(asked)) {
            let may_be_all = quiet.get(&key.plan.client).is_none_or(|(_, may_be_all)| *may_be_all);
            quiet.insert(key.plan.client, (now.after(asked), may_be_all));
        }
        self.note_reply(number, "failed");
    }

    /// The engine has not seen the reply yet.
    fn note_reply(&mut self, number: usize, what: &'static str) {
        let seen = self.keys[number].seen.take();
        self.note(number, what);
        self.keys[number].seen = seen;
    }

    /// A trouble begins.
    pub fn troubled(&mut self, site: usize, trouble: Trouble, client: Option<usize>) {
        self.sites[site].trouble = Some((trouble, self.clock.now()));
        self.sites[site].troubled_client = client;
        self.sites[site].callers_recovered = None;
        self.sites[site].scheduled = 0;
        self.tally.troubles += 1;
        self.look_at_all();
    }

    /// A trouble ends. While an issuer is down, the schedules of all its tokens together cost what is in flight when
    /// it begins, three that find out, eight while the back-off grows, and then one in each of its shortest.
    pub fn relieved(&mut self, site: usize) {
        let now = self.clock.now();
        let Some((trouble, since)) = self.sites[site].trouble.take() else { return };
        let most = 16.0 + now.since(since).as_secs_f64() / 96.0;
        let scheduled = f64::from(self.sites[site].scheduled);
        if trouble.is_outage() && scheduled > most {
            self.violated(&format!(
                "issuer {site}: {scheduled} requests during {trouble:?}, more than {most}"
            ));
        }
        self.look_at_all();
    }

    /// The secret on the host is replaced, which is worth a request of each token.
    pub fn replaced(&mut self, site: usize) {
        self.sites[site].replacements += 1;
        for key in self.keys.iter_mut().filter(|key| key.site == site) {
            key.is_abandoned = true;
        }
    }

    /// The time for recovery is over: each token that had failed has been renewed since the trouble ended.
    pub fn recovered(&mut self, site: usize, ended: Instant) {
        let is_behind = |key: &Key| {
            let failing = key.seen.as_ref().is_some_and(|seen| {
                let snapshot = seen.borrow();
                snapshot.last_error.is_some() && snapshot.next_attempt.is_some()
            });
            key.site == site && failing && key.grants.back().is_none_or(|grant| grant.sent_at < ended)
        };
        if let Some(number) = self.keys.iter().position(is_behind) {
            self.violated(&format!("token {number} has not recovered: {:?}", self.keys[number].seen));
        }
    }

    /// A caller is sent away until `announced`: what is wrong with that.
    pub fn sent_away(
        &mut self,
        number: usize,
        failed: &Failed,
        announced: Instant,
        was_awake: bool,
    ) -> Option<&'static str> {
        let now = self.clock.now();
        let key = &mut self.keys[number];
        let site = &self.sites[key.site];
        let is_throttled = failed.class == ErrorClass::Throttled;
        let may_be_throttled = site.was_asked_for_quiet(key.plan.client, now)
            || site.asks_all_for_quiet(now)
            || key.streak.is_some();
        let before = key.announced.replace((now, announced));
        let told_before = before.filter(|(_, until)| until.after(TICK) < now && was_awake);
        let was_asked_since = |since| site.last_sent.max(site.last_failed).is_some_and(|at| at >= since);
        let is_refused = key.streak.is_some_and(|(kind, _)| kind == Kind::Refusal);
        if is_throttled && !may_be_throttled {
            return Some("a caller was sent away for another client's Retry-After");
        }
        if let Some((since, _)) = told_before.filter(|_| !is_throttled)
            && !was_asked_since(since)
        {
            return Some("a caller was told a time that was not true");
        }
        let is_late =
            site.callers_recovered.is_some_and(|at| now > at && self.resumed.1.after(TROUBLED_MOST) < at);
        if is_late && !is_throttled && !is_refused && failed.class != ErrorClass::Secret {
            return Some("a caller was sent away long after the trouble ended");
        }
        None
    }

    /// Whether a token satisfying `min_ttl` was there well before `until`, since `from`.
    pub fn was_there(&self, number: usize, min_ttl: Duration, from: Instant, until: Instant) -> bool {
        self.keys[number].grants.iter().any(|grant| {
            let expires = grant.expires();
            let lasts = expires > grant.granted_at && expires.since(grant.granted_at) >= min_ttl;
            lasts && grant.granted_at >= from && grant.granted_at.after(TICK) < until
        })
    }

    pub fn check(&mut self, number: usize, text: &str) {
        if let Err(wrong) = self.keys[number].check(number, text, self.clock.now()) {
            self.violated(&wrong);
        }
    }

    pub fn violated(&mut self, what: &str) {
        if self.violation.is_none() {
            let trace: Vec<_> = self.trace.iter().map(|event| format!("{event:?}")).collect();
            self.violation = Some(format!("{what}\nat {:?}, after\n{}", self.clock.now(), trace.join("\n")));
        }
    }
}
