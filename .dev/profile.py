import sys, torch, time
from benchmarks.rooflines import *
from benchmarks.load import *
place = Place(torch.device("cuda"), torch.bfloat16)
b = Rooflines("llada-8b", place)
print(b._ceilings, flush=True)
out = sys.argv[1]
for batch in (1, 16):
    w = Workload(2048, batch, 1)
    load = ConstantLoad(b._engine, 126464, w, POLICIES["lean"])
    s = watch(b._engine, b._place, load, 2.0, warm_steps=batch + 32)
    print(batch, s, s.canvas_tokens / s.elapsed_s, flush=True)
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        t=time.perf_counter()
        for _ in range(4): load.step()
        torch.cuda.synchronize(); print("4 steps", time.perf_counter()-t)
    open(f"{out}/prof{batch}.txt","w").write(prof.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=60))
    print(prof.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=50)[-3500:] if batch==16 else "")
    load.close()
