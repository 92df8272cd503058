"""One checkpoint of any origin on the study's tasks and on text, without a study."""
