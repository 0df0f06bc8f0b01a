"""What a run leaves behind and says.

- ``run_folder.py``: where do the files of a run go, and what would make it again?
- ``run_lock.py``: who trains in the folder, and how is another one kept from writing there meanwhile?
- ``run_record.py``: what did a run leave, and did it finish?
- ``conditions.py``: which runs does a person mean by "lr<1e-3"?
- ``processes.py``: which process is which, and is it still there?
- ``forks.py``: what becomes of the run's objects in a child of a fork?
- ``logger.py``: how does everything printed get into ``log.txt``?
- ``event_writer.py``: how are TensorBoard events written?
- ``console.py``: how long may a line on the console be?
- ``csv_table.py``: how does a table grow on the disk at the same cost for each row?
- ``named_values.py``: which column is a name and number of somebody's own loop?
- ``journal.py``: how does a text file grow line by line, and what of it is there after a kill?
- ``text_table.py``: how are rows printed as a table?
- ``history_table.py``: how is a history handed out, with pandas and without?
- ``pictures.py``: where is a picture or a text of a callback shown?
- ``curves.py``: how are the curves of a run drawn?
- ``curves_svg.py``: how are they drawn in a page or a notebook?
- ``curves_text.py``: how are they drawn in a terminal?
- ``fonts.py``: which font has the characters of a text in a picture?
- ``time_left.py``: how long does the run still take?
- ``page.py``: how does a page of HTML hold all that it shows?
- ``patient_file.py``: how does a file outlast a full disk?
- ``warn.py``: which line does a warning name, and how does it get into the log?
- ``summary.py``: how is the table of layers made?
- ``speed.py``: how fast is the training?
"""
