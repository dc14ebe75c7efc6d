//! A credential whose daemon crashes every few seconds asks its provider for nothing that one without a crash would
//! not have asked for.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokend::store::memory::Memory;
use tokend::store::record::Key;
use tokend::store::{FdStore, Store};
use tokend_protocol::ErrorClass;

use crate::test_support::{Scene, Script, Subject, fail};

const HOUR: u64 = 3_600;

/// The store of a daemon that finds this memory.
async fn successor(scene: &Scene, memory: &OwnedFd) -> Arc<Store> {
    assert!(!Memory::adopt(memory.try_clone().unwrap()).unwrap().is_damaged);
    let manager = FdStore::Present { left: Some(memory.try_clone().unwrap()), is_proved: true };
    Store::open(scene.clock.clone(), manager, |_| (), "/".as_ref(), None).await
}

/// Runs a subject for so many seconds, in which its daemon crashes every ten or so: how often.
async fn crash_again_and_again(scene: &Scene, subject: &Subject, seconds: u64) -> usize {
    let memory: OwnedFd = Memory::create().unwrap().as_fd().try_clone_to_owned().unwrap();
    let mut crashes = 0;
    let mut next = 0.0;
    while next < Duration::from_secs(seconds).as_secs_f64() {
        let store = successor(scene, &memory).await;
        let credential = subject.start_from(&store, Key::named("subject"));
        next += 20.0 * fastrand::f64();
        tokio::time::sleep(Duration::from_secs_f64(next - scene.seconds().min(next))).await;
        // What is under way then is for `hot_restart`, with a real process.
        while credential.snapshot().in_flight {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        crashes += 1;
    }
    crashes
}

#[tokio::test(start_paused = true)]
async fn renewals_come_when_they_would_have_come() {
    let mut gaps = Vec::new();
    for seed in 0..8 {
        let scene = Scene::begin(seed);
        let subject = scene.subject("a", |_| Ok(600));
        let crashes = crash_again_and_again(&scene, &subject, 4 * HOUR).await;
        let renewals = subject.gaps();
        assert!(crashes > 1_000 && renewals.len() >= 30, "{crashes} crashes, {} renewals", renewals.len());
        for gap in &renewals {
            assert!(
                (359.9..421.0).contains(gap),
                "renewed {gap} s after the request before, with seed {seed}"
            );
        }
        gaps.extend(renewals);
    }
    // Rolled anew at every crash, the jitter would favour the early edge.
    let mean = gaps.iter().sum::<f64>() / f64::from(u32::try_from(gaps.len()).unwrap());
    assert!((384.0..396.0).contains(&mean), "renewed after {mean} s on average");
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_no_more_requests_than_one_daemon_would_send() {
    let outages: [Script; 3] = [
        |now| if now < 1.0 { Ok(2 * HOUR) } else { fail(ErrorClass::Server) },
        |_| fail(ErrorClass::Refused),
        |_| fail(ErrorClass::Unreachable),
    ];
    for (number, outage) in outages.into_iter().enumerate() {
        let one = {
            let scene = Scene::begin(1);
            let subject = scene.subject("a", outage);
            let _credential = subject.start();
            scene.reach(2 * HOUR).await;
            subject.asked_at().len()
        };
        let scene = Scene::begin(1);
        let subject = scene.subject("a", outage);
        let crashes = crash_again_and_again(&scene, &subject, 2 * HOUR).await;
        let many = subject.asked_at().len();
        // Back-offs are rolled, and so are not the same in both.
        assert!(
            many <= one + one / 4,
            "{many} requests in {crashes} crashes, {one} without (outage {number})"
        );
    }
}

/// Starts a credential again and again, for an hour, whose daemon crashes whenever it has asked its provider for a moment,
/// or after so many seconds. A caller asks it all the time.
async fn crash_at_each_request(scene: &Scene, subject: &Subject, longest_life: f64) {
    let memory: OwnedFd = Memory::create().unwrap().as_fd().try_clone_to_owned().unwrap();
    while scene.seconds() < 3_600.0 {
        let store = successor(scene, &memory).await;
        let credential = subject.start_from(&store, Key::named("subject"));
        let (asked_before, end) = (subject.asked_at().len(), scene.seconds() + longest_life);
        while subject.asked_at().len() == asked_before && scene.seconds() < end.min(3_600.0) {
            let impatient = scene.clock.now().after(Duration::from_millis(100));
            let _ = credential.obtain(Duration::ZERO, impatient).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_the_daemon_is_asked_for_ever_more_seldom_and_always_again() {
    for longest_life in [f64::INFINITY, 15.0] {
        let scene = Scene::begin(1);
        // What it would be answered is never known: each daemon ends before that.
        let subject = scene.subject("a", |_| Ok(600)).with_latency(Duration::from_secs(1_000_000));
        crash_at_each_request(&scene, &subject, longest_life).await;
        let asked = subject.asked_at().len();
        assert!((100..=130).contains(&asked), "{asked} requests in an hour of lives of {longest_life} s");
        // Waits are stretched by up to a fifth, and a daemon looks for what is due five times in a second.
        let waits = [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0];
        for (gap, wait) in subject.gaps().iter().zip(waits) {
            assert!((wait..1.2 * wait + 0.5).contains(gap), "{gap} s where {wait} s are due");
        }
    }
}
