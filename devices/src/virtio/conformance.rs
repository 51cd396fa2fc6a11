//! One suite that every device passes: what the specification asks of a device whatever it is
//! for, and what a driver may do to it without ever stopping it for good.
//!
//! A new device is one line in [`specimens`], with its [`Specimen`] in `conformance/specimens.rs`.

mod chains;
mod hostile;
mod negotiation;
mod registers;
mod rings;
mod specimens;

use super::VirtioDevice;
use super::block::Engine;
use super::test_driver::{Buffer, RAM_BASE, TestDriver};

/// Every device.
fn specimens() -> Vec<Box<dyn Specimen>> {
    vec![
        Box::new(specimens::Block { engine: Engine::Sync, overlaid: false }),
        Box::new(specimens::Block { engine: Engine::Async, overlaid: false }),
        Box::new(specimens::Block { engine: Engine::Sync, overlaid: true }),
        Box::new(specimens::Rng),
        Box::new(specimens::Net::default()),
        Box::new(specimens::Vsock),
    ]
}

/// [`TestDriver::submit`] or [`TestDriver::submit_indirect`].
type Submit = fn(&mut TestDriver, usize, &[Buffer]) -> (u16, Vec<u64>);

/// What the suite must know of a device.
trait Specimen {
    /// For messages.
    fn name(&self) -> &'static str;
    /// A new device, each time of the same configuration.
    fn device(&self) -> Box<dyn VirtioDevice>;
    /// A queue whose chains the device takes as soon as it is kicked.
    fn queue(&self) -> usize;
    /// Puts a normal request on that queue, kicks, and checks the answer.
    fn request(&self, driver: &mut TestDriver, submit: Submit);
}

/// Runs `check` with each device.
fn for_each(check: impl Fn(&dyn Specimen)) {
    for specimen in specimens() {
        // Shown when the check fails.
        println!("device: {}", specimen.name());
        check(specimen.as_ref());
    }
}

/// A driver that has done everything right so far.
fn started(specimen: &dyn Specimen) -> TestDriver {
    TestDriver::started(specimen.device())
}

/// The device survived: a reset makes it as good as new.
fn assert_recovers(specimen: &dyn Specimen, driver: &mut TestDriver) {
    driver.give_back_from(RAM_BASE);
    driver.start();
    assert!(!driver.needs_reset(), "a reset heals");
    driver.take_interrupt();
    specimen.request(driver, TestDriver::submit);
    assert!(!driver.needs_reset());
}
