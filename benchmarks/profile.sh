# Sample stalls of chosen shapes of the tile kernel, instruction by instruction: OUT=folder bash benchmarks/profile.sh
run() {
  ncu --clock-control none -k regex:line_scan_tiles -s 1 -c 1 --section SourceCounters --section WarpStateStats -o /tmp/$5 -f \
    python3 -m benchmarks.sweep --shapes "$1" --cases "$2" --directions "$3" --tiles "$4" > "$OUT"/$5.log 2>&1
  ncu -i /tmp/$5.ncu-rep --page source --csv --print-units base > "$OUT"/$5.csv 2>&1
  wc -l "$OUT"/$5.csv
}
run one_1k "float32 PC" top_to_bottom 4,1,1,2,4,8,32,3,4,8 one_v
run one_1k "float32 PC" left_to_right 2,1,1,4,2,16,16,3,4,8 one_h
run batch "bfloat16 SH" left_to_right 2,1,2,4,4,16,16,3,8,8 batch_h16
run batch "float32 PC" left_to_right 2,1,1,4,4,16,16,3,4,8 batch_h32
run wide_32 "bfloat16 SH" left_to_right 1,1,4,1,1,32,0,2,8,1 wide_h16
