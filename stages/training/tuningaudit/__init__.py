"""Do the files that models are tuned on hold text of what is asked?"""
