//! RFC 3339 timestamps, as Go writes them into JSON.

/// Seconds since 1970 (UTC) with their fraction; `None` if `text` is not an RFC 3339 timestamp.
pub fn unix_seconds(text: &str) -> Option<f64> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut date = date.splitn(3, '-').map(str::parse::<u32>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, zone) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
    let mut time = time.splitn(3, ':');
    let hour: u32 = time.next()?.parse().ok()?;
    let minute: u32 = time.next()?.parse().ok()?;
    let second: f64 = time.next()?.parse().ok()?;
    let is_valid = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && (0.0..61.0).contains(&second);
    let seconds = days_to(year, month, day) * 86_400.0
        + f64::from(hour) * 3600.0
        + f64::from(minute) * 60.0
        + second;
    is_valid.then_some(seconds - offset(zone)?)
}

/// Seconds that a zone, `Z` or `+02:00`, is ahead of UTC.
fn offset(zone: &str) -> Option<f64> {
    let sign = match zone.get(..1)? {
        "+" => 1.0,
        "-" => -1.0,
        _ => return (zone.len() == 1).then_some(0.0),
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let (hours, minutes): (u8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60)
        .then(|| sign * (f64::from(hours) * 3600.0 + f64::from(minutes) * 60.0))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar.
fn days_to(year: u32, month: u32, day: u32) -> f64 {
    // The year is taken to begin in March, so that its last day is the leap day.
    let (year, month) = if month > 2 {
        (year, month.saturating_sub(3))
    } else {
        (year.saturating_sub(1), month.saturating_add(9))
    };
    let whole = |numerator: f64, denominator: f64| (numerator / denominator).floor();
    let (years, months) = (f64::from(year), f64::from(month));
    let leap_days = whole(years, 4.0) - whole(years, 100.0) + whole(years, 400.0);
    years * 365.0 + leap_days + whole(153.0 * months + 2.0, 5.0) + f64::from(day) - 719_469.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_timestamp_is_parsed() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("1969-12-31T23:59:59Z", -1.0),
            ("2026-08-22T10:25:00Z", 1_787_394_300.0),
            ("2026-08-22T12:25:00.5+02:00", 1_787_394_300.5),
            ("2026-08-22T02:55:00-07:30", 1_787_394_300.0),
            ("2024-02-29T00:00:00Z", 1_709_164_800.0),
            ("2000-03-01T00:00:00Z", 951_868_800.0),
            ("2100-03-01T00:00:00Z", 4_107_542_400.0),
        ] {
            assert_eq!(unix_seconds(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn an_invalid_timestamp_is_none() {
        for text in [
            "",
            "T",
            "2026-08-22",
            "2026-08-22T10:25:00",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-08-22T25:00:00Z",
            "2026-08-22T10:25:NaNZ",
            "2026-08-22T10:25:00+2",
            "2026-08-22T10:25:00+99:00",
            "2026-08-22T10:25:00Zulu",
            "99999999999-01-01T00:00:00Z",
            "0-01-01T00:00:00Z",
            "soon",
        ] {
            assert_eq!(unix_seconds(text), None, "{text}");
        }
    }
}
