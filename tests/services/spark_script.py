"""Run by `tests.services.spark` where pyspark is: questions on standard input, rows on output."""

import json
import sys
from decimal import Decimal

from pyspark.sql import SparkSession

asked = json.load(sys.stdin)
spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.jars", asked["jar"])
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.memory", "1g")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.shuffle.partitions", "1")
    .getOrCreate()
)
answers = []
for snapshot_id, sql in asked["questions"]:
    table = spark.read.format("iceberg").option("snapshot-id", snapshot_id).load(asked["metadata"])
    table.createOrReplaceTempView("trades")
    rows = spark.sql(sql).collect()
    answers.append([[str(v.normalize()) if isinstance(v, Decimal) else v for v in r] for r in rows])
spark.stop()
sys.stdout.write(json.dumps(answers) + "\n")
