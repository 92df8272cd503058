"""What evaluations outside a study say: one checkpoint's scores with intervals, and two sides compared."""
