"""What a run leaves behind and says.

- ``run_folder.py``: where do the files of a run go, and what would make it again?
- ``logger.py``: how does everything printed get into ``log.txt``?
- ``event_writer.py``: how are TensorBoard events written?
- ``console.py``: how long may a line on the console be?
- ``csv_table.py``: how does a table grow on the disk at the same cost for each row?
- ``curves.py``: how are the curves of a run drawn?
- ``patient_file.py``: how does a file outlast a full disk?
- ``summary.py``: how is the table of layers made?
- ``speed.py``: how fast is the training?
"""
