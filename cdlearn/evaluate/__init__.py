"""Evaluation: strategies x tasks, each answer on disk as soon as it is there, percentages with paired intervals.

`strategies` names sources, `questions` reads prompts files, `folder` keeps the answers, `answers` asks for them,
`report` counts, `figures` draws, `command` is `cdlearn eval`.
"""
