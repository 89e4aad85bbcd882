//! The energy that GPUs use: their power, integrated over readings on the monotonic clock.
//!
//! The power of a reading counts for the time since the reading before. Where it was unknown at one
//! of the two, the time between them does not count: a suspended GPU uses little.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::snapshot::Gpu;

/// The energy that each GPU has used while its power was known, by index.
#[derive(Debug, Default)]
pub struct EnergyMeter(BTreeMap<String, GpuEnergy>);

#[derive(Debug, Default)]
struct GpuEnergy {
    joules: f64,
    /// The last reading, if the power was known then.
    known_at: Option<Instant>,
}

impl EnergyMeter {
    /// Takes the power of `gpu`, read at `now`, and sets its energy if the power is known. After a
    /// pause longer than `longest` the power in between is unknown.
    pub fn measure(&mut self, gpu: &mut Gpu, now: Instant, longest: Duration) {
        let energy = self.0.entry(gpu.index.clone()).or_default();
        let then = std::mem::replace(&mut energy.known_at, gpu.power.map(|_| now));
        let elapsed = then.map(|then| now.saturating_duration_since(then));
        if let (Some(watts), Some(elapsed)) = (gpu.power, elapsed)
            && elapsed <= longest
        {
            energy.joules += watts * elapsed.as_secs_f64();
        }
        gpu.energy = gpu.power.map(|_| energy.joules);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The energy of the GPUs 0 and 1 after readings of this power, each so many seconds after
    /// the start. A pause of more than ten seconds is too long.
    fn energy(readings: &[(u64, [Option<f64>; 2])]) -> [Option<f64>; 2] {
        let start = Instant::now();
        let mut meter = EnergyMeter::default();
        let mut gpus = [Gpu::default(), Gpu::default()];
        for (second, watts) in readings {
            for (index, gpu) in gpus.iter_mut().enumerate() {
                gpu.index = index.to_string();
                (gpu.power, gpu.energy) = (watts[index], None);
                let now = start + Duration::from_secs(*second);
                meter.measure(gpu, now, Duration::from_secs(10));
            }
        }
        gpus.map(|gpu| gpu.energy)
    }

    #[test]
    fn energy_is_power_times_the_time_between_readings() {
        let first = (0, [Some(50.0), Some(10.0)]);
        assert_eq!(energy(&[first]), [Some(0.0), Some(0.0)]);
        // Readings need not be equally far apart.
        let readings = [
            first,
            (5, [Some(100.0), Some(10.0)]),
            (7, [Some(300.0), Some(10.0)]),
        ];
        assert_eq!(energy(&readings), [Some(1100.0), Some(70.0)]);
    }

    #[test]
    fn time_of_unknown_power_does_not_count() {
        let known = |second, watts| (second, [Some(watts), None]);
        let unknown = |second| (second, [None, None]);
        // Absent where the power is unknown, now or always.
        assert_eq!(energy(&[known(0, 50.0), unknown(5)]), [None, None]);
        // Kept, and no less than before, once it is known again; also after a pause.
        let readings = [
            known(0, 50.0),
            known(2, 50.0),
            unknown(4),
            known(5, 80.0),
            known(6, 80.0),
            known(3600, 80.0),
            known(3601, 80.0),
        ];
        assert_eq!(energy(&readings), [Some(260.0), None]);
    }
}
