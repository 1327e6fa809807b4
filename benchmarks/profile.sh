# Profile chosen shapes of the tile kernel: bash benchmarks/profile.sh OUT
run() {
  ncu --clock-control none -k regex:line_scan_tiles -s 1 -c 1 --section SpeedOfLight --section WarpStateStats \
    --section MemoryWorkloadAnalysis --section SchedulerStats --section LaunchStats --section Occupancy \
    --section InstructionStats --section SourceCounters --csv --page details \
    python3 -m benchmarks.sweep --shapes "$1" --cases "$2" --directions "$3" --tiles "$4" > "$5" 2>&1
  grep -E "Duration|DRAM Throughput|Memory Throughput|Executed Ipc|No Eligible|Stall|Registers Per|Bank|L2 Hit|Warp Cycles Per Issued" "$5" | cut -d, -f 12-20 | head -40
}
run wide_32 "bfloat16 SH" left_to_right 1,2,2,1,2,16,0,4,8 $1/ncu_wide_bf16_l2r.csv
run wide_32 "bfloat16 SH" top_to_bottom 8,1,4,1,2,8,0,2,2 $1/ncu_wide_bf16_t2b.csv
run batch "bfloat16 SH" top_to_bottom 8,1,2,1,2,4,32,3,2 $1/ncu_batch_bf16_t2b.csv
run batch "bfloat16 SH" left_to_right 4,1,2,2,4,16,16,2,8 $1/ncu_batch_bf16_l2r.csv
run batch "float32 PC" left_to_right 4,1,1,2,4,16,16,2,4 $1/ncu_batch_fp32_l2r.csv
