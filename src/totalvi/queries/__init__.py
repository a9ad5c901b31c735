"""The questions that `totalvi.Model` answers, by topic: names and tables around `posterior`."""
